// What can be done to a run: each with a dialog that says what will happen.
import { useState } from "preact/hooks";
import { type ApiError, download, post, put, remove, token, withQuery } from "../api";
import { asApiError, usePolled } from "../live";
import { type Alias, hasEnded, isPromotable, runKey, runPath, type RunRecord } from "../records";
import { go, to } from "../route";
import { Code, Dialog, ErrorNote, Note, OUTCOME } from "./basics";

type Open = "cancel" | "delete" | "promote" | null;

export function RunActions({ run, onChange }: { run: RunRecord; onChange: () => void }) {
  const [open, setOpen] = useState<Open>(null);
  const close = () => setOpen(null);
  const isFinished = run.status === "FINISHED";
  return (
    <div class="actions">
      {!hasEnded(run.status) && <button type="button" onClick={() => setOpen("cancel")}>Cancel the run</button>}
      {isFinished && <Download run={run} />}
      <button type="button" class="danger" onClick={() => setOpen("delete")}>Delete</button>
      {isFinished && <button type="button" class="primary" onClick={() => setOpen("promote")}>Promote</button>}
      {open === "cancel" && <CancelDialog run={run} onClose={close} onDone={onChange} />}
      {open === "delete" && <DeleteDialog run={run} onClose={close} />}
      {open === "promote" && <PromoteDialog run={run} onClose={close} />}
    </div>
  );
}

function Download({ run }: { run: RunRecord }) {
  const [isBusy, setIsBusy] = useState(false);
  const [error, setError] = useState<ApiError | null>(null);
  const path = runPath(run.name, "/artifact"), query = { experiment_name: run.experiment_name };
  const file = `${run.name}.zip`;
  // The browser's own download goes to the disk as it comes, but carries no token.
  if (!token.value) return <a class="button" href={withQuery(path, query)} download={file}>Download</a>;
  const fetchIt = async () => {
    setIsBusy(true);
    setError(null);
    await download(path, query, file).catch((thrown) => setError(asApiError(thrown)));
    setIsBusy(false);
  };
  return (
    <>
      <button type="button" disabled={isBusy} onClick={() => void fetchIt()}>{isBusy ? "Downloading …" : "Download"}</button>
      {error && <ErrorNote error={error} />}
    </>
  );
}

/** Something that is under way or was refused. */
function useAsked(): { isBusy: boolean; error: ApiError | null; ask: (work: () => Promise<void>) => Promise<void> } {
  const [isBusy, setIsBusy] = useState(false);
  const [error, setError] = useState<ApiError | null>(null);
  const ask = async (work: () => Promise<void>) => {
    setIsBusy(true);
    setError(null);
    await work().catch((thrown) => setError(asApiError(thrown)));
    setIsBusy(false);
  };
  return { isBusy, error, ask };
}

function CancelDialog({ run, onClose, onDone }: { run: RunRecord; onClose: () => void; onDone: () => void }) {
  const { isBusy, error, ask } = useAsked();
  const cancel = () =>
    ask(async () => {
      await post(runPath(run.name, "/cancel"), undefined, { experiment_name: run.experiment_name });
      onDone();
      onClose();
    });
  return (
    <Dialog title="Cancel this run?" onClose={onClose}>
      <p>It ends for good and gives no model. Its log and its metrics so far stay until it is deleted.</p>
      {error && <ErrorNote error={error} />}
      <div class="actions">
        <button type="button" onClick={onClose}>Let it run</button>
        <button type="button" class="danger" disabled={isBusy} onClick={() => void cancel()}>Cancel the run</button>
      </div>
    </Dialog>
  );
}

function DeleteDialog({ run, onClose }: { run: RunRecord; onClose: () => void }) {
  const { isBusy, error, ask } = useAsked();
  const aliases = usePolled<{ items: Alias[] }>("/aliases", {}, 0);
  const using = (aliases.value?.items ?? []).filter((alias) => pointsTo(alias, run)).map((alias) => alias.name);
  const deleteIt = () =>
    ask(async () => {
      await remove(runPath(run.name), { experiment_name: run.experiment_name });
      go(["runs"]);
    });
  return (
    <Dialog title="Delete this run?" onClose={onClose}>
      <div class="stack">
        <p>
          Its model, log, metrics and settings are removed from the volume. This cannot be undone.
          {!hasEnded(run.status) && " It is ended first."}
        </p>
        {using.length > 0 && (
          <Note tone="warn"><p>Served as {using.join(", ")}: requests for that will fail until it points to another run.</p></Note>
        )}
        {error && <ErrorNote error={error} />}
      </div>
      <div class="actions">
        <button type="button" onClick={onClose}>Keep it</button>
        <button type="button" class="danger" disabled={isBusy} onClick={() => void deleteIt()}>Delete the run</button>
      </div>
    </Dialog>
  );
}

function pointsTo(alias: Alias, run: RunRecord): boolean {
  return [...alias.shares, ...(alias.shadow ? [alias.shadow] : [])].some((target) => target.run === runKey(run));
}

function PromoteDialog({ run, onClose }: { run: RunRecord; onClose: () => void }) {
  const aliases = usePolled<{ items: Alias[] }>("/aliases", {}, 0);
  const [name, setName] = useState("prod");
  const [isForced, setIsForced] = useState(false);
  const [done, setDone] = useState<string | null>(null);
  const { isBusy, error, ask } = useAsked();
  const known = aliases.value?.items ?? [];
  const present = known.find((alias) => alias.name === name);
  const isRefused = isPromotable(run) === false;
  const promote = (event: Event) => {
    event.preventDefault();
    void ask(async () => {
      await put(`/aliases/${encodeURIComponent(name)}`, { run: runKey(run), force: isForced });
      setDone(name);
    });
  };
  if (done !== null) return <Promoted name={done} run={run} onClose={onClose} />;
  return (
    <Dialog title="Promote this run" onClose={onClose}>
      <form class="stack" onSubmit={promote}>
        <p>Requests that name the alias are answered by this run's model. It is loaded first, so nobody waits.</p>
        <p class="quiet">An alias takes a run that improved on one of its evaluations at least and got worse on none, or one that you insist on.</p>
        {isRefused && <Note tone="warn"><p>{whyNot(run)}</p></Note>}
        <label>
          Alias
          <input value={name} required autocomplete="off" onInput={(e) => setName(e.currentTarget.value.trim())} />
        </label>
        {known.length > 0 && (
          <fieldset>
            <legend>Those that are there</legend>
            <div class="choices">
              {known.map((alias) => (
                <button type="button" class="small" aria-pressed={alias.name === name} onClick={() => setName(alias.name)}>{alias.name}</button>
              ))}
            </div>
          </fieldset>
        )}
        <p class="quiet" aria-live="polite">{(!isRefused || isForced) && consequence(name, present, run)}</p>
        {error && <ErrorNote error={error} />}
        {(isRefused || error?.kind === "PromotionRefusedError") && (
          <label class="inline">
            <input type="checkbox" checked={isForced} onChange={(e) => setIsForced(e.currentTarget.checked)} />
            Promote it all the same
          </label>
        )}
        <div class="actions">
          <button type="button" onClick={onClose}>Not now</button>
          <button type="submit" class="primary" disabled={isBusy || !name || (isRefused && !isForced)}>{isBusy ? "Loading the model …" : "Promote"}</button>
        </div>
      </form>
    </Dialog>
  );
}

function whyNot({ verdict }: RunRecord): string {
  if (!verdict) return "This run was not evaluated, so nobody knows whether it is better. It can be promoted if you insist below.";
  return `This run did not measure better (${OUTCOME[verdict].word}). It can be promoted if you insist below.`;
}

function consequence(name: string, present: Alias | undefined, run: RunRecord): string {
  if (!name) return "";
  if (!present) return `${name} is a new alias, made by this.`;
  const answering = present.shares.map((share) => share.run);
  if (answering.length === 1 && answering[0] === runKey(run) && !present.shadow) return `${name} points to this run already.`;
  const ended = [answering.length > 1 && "its split ends", present.shadow && "its shadow ends"].filter(Boolean);
  return `${name} points to ${answering.join(" and ")} now${ended.length ? `; ${ended.join(" and ")}` : ""}. A rollback leads back to it.`;
}

function Promoted({ name, run, onClose }: { name: string; run: RunRecord; onClose: () => void }) {
  const body = JSON.stringify({ data: [{ text: "some text" }], parameters: { artifact: name } });
  const head = token.value ? ' -H "Authorization: Bearer $FINETUNER_TOKEN"' : "";
  return (
    <Dialog title={`${name} is served`} onClose={onClose}>
      <div class="stack">
        <p role="status">Requests for {name} are answered by {runKey(run)} from now on.</p>
        <Code label="Command that uses the alias" text={`curl${head} -d '${body}' ${location.origin}/encode`} />
      </div>
      <div class="actions">
        <button type="button" onClick={onClose}>Close</button>
        <a class="button primary" href={to(["try"], { a: name })}>Try it</a>
      </div>
    </Dialog>
  );
}
