// A new run: choose data, see what the server finds in it, set what differs from what is recommended, start.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ApiError, send, token } from "../api";
import { type Chosen, epochsHint, examplesHint, fieldOf, findLoss, fitted, type Form, LOSSES, missing, MODELS, recommendedLoss, RECOMMENDED, requestOf, stepsAnEpoch, withLoss } from "../fit_request";
import { plural, size } from "../format";
import { asApiError, usePolled } from "../live";
import { Card, Code, ErrorNote, Loading, Note } from "../parts/basics";
import { DataReportView } from "../parts/data_report";
import { Choices, Field, Problems, TextField } from "../parts/field";
import { DataChoice, DataSelect, ReadAs, type Uploaded, withScope } from "../parts/stored_data";
import type { Check, Complaint, RunRecord, StoredData } from "../records";
import { go } from "../route";
import { commandOf, curlOf, type Json, pythonOf } from "../source_text";

const PAUSE_MS = 400;
const FEW_LABELS = 5;

/** What a group of fields needs to show the form and to change it. */
interface Group {
  form: Form;
  change: (changes: Partial<Form>) => void;
  problems: (field: keyof Form) => string[];
}

export default function NewRun() {
  const [form, setForm] = useState<Form>(RECOMMENDED);
  const [chosen, setChosen] = useState<Chosen>({ loss: false, evaluation: false });
  const [hasGpu, setHasGpu] = useState<boolean | undefined>(undefined);
  const request = useMemo(() => requestOf(form, hasGpu), [form, hasGpu]);
  const stored = usePolled<{ items: StoredData[] }>("/data", {}, 10_000);
  const [uploaded, setUploaded] = useState<Uploaded | null>(null);
  const [n_uploads, setNUploads] = useState(0);
  const { check, error, isPending } = useCheck(form.train_data ? request : null, n_uploads);
  const dataForm = check?.train_data?.form;
  const change = (changes: Partial<Form>) => {
    setChosen((now) => ({ loss: now.loss || "loss" in changes, evaluation: now.evaluation || "evaluation" in changes }));
    setForm((now) => (changes.loss === undefined ? { ...now, ...changes } : withLoss({ ...now, ...changes }, changes.loss)));
  };
  useEffect(() => {
    if (dataForm) setForm((now) => fitted(now, dataForm, chosen));
  }, [dataForm]);
  useEffect(() => {
    if (check) setHasGpu(check.has_gpu);
  }, [check]);
  const key = useKey(request);
  const [refusal, setRefusal] = useState<Complaint | null>(null);
  useEffect(() => setRefusal(null), [form]);
  const lacking = missing(form);
  // What the first check says of a GPU is answered by the next one, which asks for what there is.
  const isOfGpu = ({ field }: Complaint) => field === "device" && form.device === "auto";
  const warnings = (check?.warnings ?? []).filter((each) => !isOfGpu(each));
  const found = (check?.problems ?? []).filter((each) => !isOfGpu(each) && (!lacking.length || fieldOf(each.field) !== "evaluation"));
  const complaints: Complaint[] = [...lacking, ...found, ...(refusal ? [refusal] : [])];
  const problems = (field: keyof Form) => complaints.filter((c) => fieldOf(c.field) === field).map((c) => c.message);
  const group = { form, change, problems };
  return (
    <>
      <div class="title"><h1>New run</h1></div>
      <div class="form-page">
        <form class="stack" onSubmit={(event) => event.preventDefault()} aria-label="Settings of the run">
          <Card title="1. Training data">
            <div class="stack">
              <DataChoice stored={stored} value={form.train_data} onChange={(train_data) => change({ train_data })} onUpload={(file) => (setUploaded(file), setNUploads((n) => n + 1))} />
              {uploaded && uploaded.name === form.train_data && !uploaded.hasHeader && (
                <ReadAs key={uploaded.name} uploaded={uploaded} form={dataForm} preview={check?.train_data?.preview} onRead={() => (setNUploads((n) => n + 1), stored.refresh())} />
              )}
              <Problems problems={problems("train_data")} />
              {check?.train_data && <DataReportView report={check.train_data} />}
            </div>
          </Card>
          <Card title="2. Model and training"><Training {...group} check={check} /></Card>
          <Card title="3. Evaluation"><EvaluationFields {...group} stored={stored} check={check} /></Card>
          <Card><More {...group} hasGpu={hasGpu} /></Card>
        </form>
        <div class="stack side">
          <Card title="Before it starts">
            <Verdict hasData={Boolean(form.train_data)} check={check} error={error} isPending={isPending} complaints={complaints} warnings={warnings} />
            <Start request={request} idempotencyKey={key} isReady={Boolean(check) && !isPending && !complaints.length} onRefused={setRefusal} />
          </Card>
          <Card title="The same without this page"><SameAs request={request} idempotencyKey={key} /></Card>
        </div>
      </div>
    </>
  );
}

/** Ask the server what it would say of a request, a moment after its last change or after an upload. */
function useCheck(request: Record<string, Json> | null, n_uploads: number) {
  const [found, setFound] = useState<{ check?: Check; error?: ApiError; isPending: boolean }>({ isPending: false });
  const [round, setRound] = useState(0);
  const key = request && JSON.stringify(request);
  const data = request?.train_data;
  useEffect(() => setFound({ isPending: data !== undefined }), [data, n_uploads]);
  useEffect(() => {
    if (!request) return;
    const abort = new AbortController();
    setFound((now) => ({ ...now, isPending: true }));
    const timer = setTimeout(async () => {
      try {
        const answer = await send("POST", "/check", { body: request, signal: abort.signal });
        setFound({ check: await answer.json(), isPending: false });
      } catch (thrown) {
        if (abort.signal.aborted) return;
        const error = asApiError(thrown);
        setFound((now) => ({ ...now, error, isPending: false }));
        if (error.isAway) setTimeout(() => !abort.signal.aborted && setRound((n) => n + 1), 3_000);
      }
    }, PAUSE_MS);
    return () => (clearTimeout(timer), abort.abort());
  }, [key, n_uploads, round, token.value]);
  return found;
}

function Training({ form, change, problems, check }: Group & { check?: Check }) {
  const dataForm = check?.train_data?.form;
  const loss = findLoss(form.loss.trim());
  const suggested = dataForm ? recommendedLoss(dataForm) : undefined;
  const fits = !suggested || !loss || loss.forms.includes(dataForm!);
  return (
    <div class="fields four">
      <TextField
        label="Model" value={form.model} onChange={(model) => change({ model })} suggestions={MODELS} problems={problems("model")}
        hint={MODELS.find(({ name }) => name === form.model)?.says ?? "a short name, a Hugging Face id or a folder of the server"}
      />
      <TextField
        label="Loss" value={form.loss} onChange={(name) => change({ loss: name })} suggestions={LOSSES} problems={problems("loss")}
        hint={fits ? loss?.says ?? "a loss of pytorch-metric-learning" : `for ${dataForm} we recommend ${suggested!.name}`}
      />
      {loss?.option && (
        <TextField label={`Its ${loss.option.name}`} inputMode="decimal" value={form.loss_option} onChange={(loss_option) => change({ loss_option })} problems={problems("loss_option")} hint={`${loss.option.value} is a good start`} />
      )}
      <TextField label="Epochs" type="number" min={0} max={1000} value={form.epochs} onChange={(epochs) => change({ epochs })} problems={problems("epochs")} hint={epochsHint(form, stepsAnEpoch(form, check))} />
    </div>
  );
}

function EvaluationFields({ form, change, problems, stored, check }: Group & { stored: ReturnType<typeof usePolled<{ items: StoredData[] }>>; check?: Check }) {
  const held = Number(form.hold_out);
  return (
    <div class="stack">
      <p class="quiet">Search before the training and after each epoch shows whether the model got better.</p>
      <Choices
        label="What is searched"
        value={form.evaluation}
        onChange={(evaluation) => change({ evaluation })}
        choices={[
          { value: "hold_out", label: "Hold out a share" },
          { value: "separate", label: "Data of its own" },
          { value: "none", label: "No evaluation" },
        ]}
      />
      <Problems problems={problems("evaluation")} />
      {form.evaluation === "hold_out" && (
        <Field label="Share of the data that is held out" problems={problems("hold_out")} hint="not trained on. From a share of five labels on, these are all texts of some labels, and the figures tell how well it does on labels that it has never seen; below, some texts of every label">
          {(marks) => (
            <div class="slider">
              <input {...marks} type="range" min="0.05" max="0.5" step="0.05" value={form.hold_out} onInput={(e) => change({ hold_out: e.currentTarget.value })} />
              <output for={marks.id}>{Math.round(100 * held)} %</output>
            </div>
          )}
        </Field>
      )}
      {form.evaluation === "separate" && (
        <div class="fields">
          <Field label="Queries" problems={problems("query_data")} hint="stored texts with labels, or pairs">
            {(marks) => <DataSelect {...marks} stored={stored} value={form.query_data} onChange={(query_data) => change({ query_data })} none="Choose stored data" />}
          </Field>
          <Field label="Searched among" problems={problems("index_data")} hint="a result is right when its label is the query's">
            {(marks) => <DataSelect {...marks} stored={stored} value={form.index_data} onChange={(index_data) => change({ index_data })} none="the queries themselves" />}
          </Field>
        </div>
      )}
      {form.evaluation !== "none" && (
        <div class="fields">
          <TextField label="Example queries" type="number" min={1} value={form.n_examples} onChange={(n_examples) => change({ n_examples })} problems={problems("n_examples")} hint={examplesHint(form, check)} />
        </div>
      )}
      {form.evaluation !== "none" && check?.evaluation && (
        <p>
          {plural(check.evaluation.n_queries, "query", "queries")} in {plural(check.evaluation.n_index, "text")} of{" "}
          {plural(check.evaluation.n_labels, "label")}.
          {check.evaluation.n_labels < FEW_LABELS && " Few labels: the figures can hardly tell models apart."}
        </p>
      )}
    </div>
  );
}

const DEVICE_HINTS = new Map([[true, "it has a GPU"], [false, "it has no GPU, so the processor trains"]]);

function More({ form, change, problems, hasGpu }: Group & { hasGpu?: boolean }) {
  const names = ["learning_rate", "batch_size", "num_items_per_class", "seed", "device", "to_onnx", "run_name", "experiment_name", "description"] as const;
  const text = (name: (typeof names)[number], label: string, hint: string, more: { type?: "number"; min?: number; placeholder?: string; inputMode?: "decimal" } = {}) => (
    <TextField label={label} hint={hint} value={String(form[name])} onChange={(value) => change({ [name]: value })} problems={problems(name)} {...more} />
  );
  const isMarked = names.some((name) => problems(name).length);
  const details = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    if (isMarked) details.current!.open = true; // and it stays so when what was marked is mended
  }, [isMarked]);
  return (
    <details ref={details}>
      <summary><h2>More settings</h2></summary>
      <div class="stack">
        <div class="fields">
          {text("run_name", "Name", "letters, digits, . _ -; made up when empty", { placeholder: "made up" })}
          {text("experiment_name", "Experiment", "a set of runs to compare", { placeholder: "default" })}
          {text("learning_rate", "Learning rate", "2e-5 when empty", { inputMode: "decimal", placeholder: "2e-5" })}
          {text("batch_size", "Texts in a batch", "more is better for most losses, and needs memory", { type: "number", min: 4 })}
          {findLoss(form.loss)?.forms.includes("labels") !== false &&
            text("num_items_per_class", "Texts of a label together", "at least 2", { type: "number", min: 2 })}
          {text("seed", "Seed", "the same seed gives the same batches", { type: "number", min: 0, placeholder: "0" })}
          <Field label="Device" problems={problems("device")} hint={hasGpu !== undefined && DEVICE_HINTS.get(hasGpu)}>
            {(marks) => (
              <select {...marks} value={form.device} onChange={(e) => change({ device: e.currentTarget.value as Form["device"] })}>
                <option value="auto">what the server has</option>
                <option value="cuda">a GPU</option>
                <option value="cpu">the processor</option>
              </select>
            )}
          </Field>
        </div>
        <label class="inline">
          <input type="checkbox" checked={form.to_onnx} onChange={(e) => change({ to_onnx: e.currentTarget.checked })} />
          <span>Make an ONNX graph too <small>it serves faster on a processor</small></span>
        </label>
        <Problems problems={problems("to_onnx")} />
        <Field label="Description" problems={problems("description")}>
          {(marks) => <textarea {...marks} rows={2} value={form.description} onInput={(e) => change({ description: e.currentTarget.value })} />}
        </Field>
      </div>
    </details>
  );
}

function Verdict(
  { hasData, check, error, isPending, complaints, warnings }:
    { hasData: boolean; check?: Check; error?: ApiError; isPending: boolean; complaints: Complaint[]; warnings: Complaint[] },
) {
  if (!hasData) return <p class="quiet">Choose training data; the server then checks data and settings at every change.</p>;
  const loose = complaints.filter(({ field }) => !fieldOf(field));
  const n_marked = complaints.length - loose.length;
  return (
    <div class="stack near" aria-live="polite" aria-busy={isPending}>
      {error && <ErrorNote error={withScope(error, "fit")} />}
      {!check && !error && <Loading what="Checking data and settings" />}
      {n_marked > 0 && (
        <Note tone="bad">
          <p>{plural(n_marked, "thing")} to mend, marked beside {n_marked > 1 ? "their fields" : "its field"}.</p>
          <button type="button" class="small" onClick={showFirstProblem}>Show</button>
        </Note>
      )}
      {loose.map(({ message }) => <Note tone="bad"><p>{message}</p></Note>)}
      {warnings.map(({ message }) => <Note tone="warn"><p>{message}</p></Note>)}
      {check && !complaints.length && <Note tone="good"><p>Nothing stands in the way.</p></Note>}
      {check?.size_bytes != null && check.free_bytes != null && (
        <p class="quiet">
          While it trains it needs up to {size(check.size_bytes)} on the disk: two checkpoints of the model with its optimizer, to go on from,
          and the finished model{check.config?.to_onnx ? " with its ONNX graph" : ""}. {size(check.free_bytes)} are free.
        </p>
      )}
    </div>
  );
}

function showFirstProblem() {
  const problem = document.querySelector<HTMLElement>(".problem");
  problem?.scrollIntoView({ block: "center" });
  problem?.parentElement?.querySelector<HTMLElement>("input, select, textarea")?.focus({ preventScroll: true });
}

function Start(
  { request, idempotencyKey, isReady, onRefused }:
    { request: Record<string, Json>; idempotencyKey: string; isReady: boolean; onRefused: (what: Complaint) => void },
) {
  const [isSending, setIsSending] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const content = JSON.stringify(request);
  const latest = useRef(content);
  latest.current = content;
  useEffect(() => setError(null), [content]);
  const start = async () => {
    setIsSending(true);
    setError(null);
    try {
      const answer = await send("POST", "/fit", { body: request, headers: { "Idempotency-Key": idempotencyKey } });
      const run: RunRecord = await answer.json();
      go(["runs", run.experiment_name, run.name]);
    } catch (thrown) {
      const refused = asApiError(thrown);
      if (refused.kind === "RunExistsError" && latest.current === content) onRefused({ field: "run_name", message: refused.message });
      else setError(refused.isAway ? new Error(`${refused.message} Start it again in a moment: it stays one run.`) : withScope(refused, "fit"));
    }
    setIsSending(false);
  };
  return (
    <div class="stack near start">
      {error && <ErrorNote error={error} />}
      <button type="button" class="primary" disabled={!isReady || isSending} onClick={() => void start()}>
        {isSending ? "Starting …" : "Start the run"}
      </button>
    </div>
  );
}

/** A key that stays while the request does: sent twice, it is one run. */
function useKey(request: Record<string, Json>): string {
  const content = JSON.stringify(request);
  return useMemo(() => {
    const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID needs TLS
    return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }, [content]);
}

type Language = "python" | "curl" | "command";

function SameAs({ request, idempotencyKey }: { request: Record<string, Json>; idempotencyKey: string }) {
  const [language, setLanguage] = useState<Language>("python");
  const server = { origin: location.origin, asksForToken: Boolean(token.value) };
  const text = {
    python: () => pythonOf(request, server),
    curl: () => curlOf(request, server, idempotencyKey),
    command: () => commandOf(request, server),
  }[language]();
  return (
    <div class="stack near">
      <Choices
        label="Written as" value={language} onChange={setLanguage}
        choices={[{ value: "python", label: "Python" }, { value: "curl", label: "curl" }, { value: "command", label: "command" }]}
      />
      <Code text={text} label={language} />
    </div>
  );
}
