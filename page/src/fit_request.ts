// The form of a new run as a request, and the request as Python, curl and command.
import { plural } from "./format";
import type { Check } from "./records";
import type { Json } from "./source_text";

export type Evaluation = "hold_out" | "separate" | "none";

/** What the form holds; numbers as they were typed. */
export interface Form {
  train_data: string;
  model: string;
  loss: string;
  loss_option: string;
  epochs: string;
  evaluation: Evaluation;
  hold_out: string;
  query_data: string;
  index_data: string;
  n_examples: string;
  learning_rate: string;
  batch_size: string;
  num_items_per_class: string;
  seed: string;
  /** `auto` for a GPU where the server has one. */
  device: "auto" | "cuda" | "cpu";
  to_onnx: boolean;
  run_name: string;
  experiment_name: string;
  description: string;
}

export const RECOMMENDED: Form = {
  train_data: "",
  model: "all-minilm-l6-v2",
  loss: "SupConLoss",
  loss_option: "0.05",
  epochs: "3",
  evaluation: "hold_out",
  hold_out: "0.2",
  query_data: "",
  index_data: "",
  n_examples: "50",
  learning_rate: "",
  batch_size: "64",
  num_items_per_class: "2",
  seed: "",
  device: "auto",
  to_onnx: true,
  run_name: "",
  experiment_name: "",
  description: "",
};

export interface KnownLoss {
  name: string;
  /** The forms of data that it trains on. */
  forms: string[];
  /** Its one option that is worth a field, and what we recommend. */
  option?: { name: string; value: string };
  says: string;
}

/** Losses that are offered; any other of pytorch-metric-learning may be typed. */
export const LOSSES: KnownLoss[] = [
  { name: "SupConLoss", forms: ["labels"], option: { name: "temperature", value: "0.05" }, says: "recommended for labels" },
  { name: "MultipleNegativesRankingLoss", forms: ["pairs"], option: { name: "temperature", value: "0.05" }, says: "recommended for pairs" },
  { name: "CoSENTLoss", forms: ["scored pairs"], option: { name: "scale", value: "20" }, says: "recommended for pairs with a score" },
  { name: "CosineSimilarityLoss", forms: ["scored pairs"], says: "pairs with a score" },
  { name: "TripletMarginLoss", forms: ["labels", "pairs"], option: { name: "margin", value: "0.05" }, says: "labels; needs its margin tuned" },
  { name: "NTXentLoss", forms: ["labels", "pairs"], option: { name: "temperature", value: "0.07" }, says: "labels" },
  { name: "MultiSimilarityLoss", forms: ["labels", "pairs"], says: "labels" },
  { name: "CircleLoss", forms: ["labels", "pairs"], says: "labels" },
  { name: "ArcFaceLoss", forms: ["labels"], says: "labels, a centre for each" },
];

/** Backbones that the server knows by a short name; a Hugging Face id or a folder of the server does too. */
export const MODELS: { name: string; says: string }[] = [
  { name: "all-minilm-l6-v2", says: "MiniLM, six layers, tuned on a billion pairs; small and fast" },
  { name: "bert-base-en", says: "BERT, English, cased" },
  { name: "sbert-base-en", says: "DistilBERT tuned for search on MS MARCO" },
  { name: "bert-base-multi", says: "BERT, 104 languages" },
];

export function findLoss(name: string): KnownLoss | undefined {
  return LOSSES.find((loss) => loss.name === name);
}

/** Return the loss that we recommend for a form of data. */
export function recommendedLoss(dataForm: string): KnownLoss {
  return LOSSES.find((loss) => loss.forms.includes(dataForm)) ?? LOSSES[0]!;
}

/** Return the form with another loss and its recommended option. */
export function withLoss(form: Form, name: string): Form {
  return { ...form, loss: name, loss_option: findLoss(name)?.option?.value ?? "" };
}

/** What the reader has set, which what is recommended for other data does not change. */
export interface Chosen {
  loss: boolean;
  evaluation: boolean;
}

/** Return the form as we recommend it for a form of data, but for what was chosen. */
export function fitted(form: Form, dataForm: string, chosen: Chosen): Form {
  const isScored = dataForm === "scored pairs"; // they have no labels to search by
  const evaluated: Form = chosen.evaluation ? form : { ...form, evaluation: isScored ? "none" : "hold_out" };
  return chosen.loss ? evaluated : withLoss(evaluated, recommendedLoss(dataForm).name);
}

// Below so many steps in all a run has hardly begun.
const ENOUGH_STEPS = 60;
const MOST_EPOCHS = 30;

/** Return about how many steps an epoch has; undefined before the server has looked at the data. */
export function stepsAnEpoch(form: Form, check: Pick<Check, "train_data" | "evaluation"> | undefined): number | undefined {
  const batchSize = Number(form.batch_size);
  if (!check?.train_data || !(batchSize > 0)) return undefined;
  const n_held = form.evaluation === "hold_out" ? check.evaluation?.n_queries ?? 0 : 0;
  return Math.max(1, Math.ceil((check.train_data.n_texts - n_held) / batchSize));
}

/** Return what to think of a number of epochs, by the steps that they come to. */
export function epochsHint(form: Form, n_steps: number | undefined): string {
  const n_epochs = Number(form.epochs);
  if (n_steps === undefined || !(n_epochs > 0)) return "times through all texts";
  const all = `about ${plural(n_steps * n_epochs, "step")} in all`;
  if (n_steps * n_epochs >= ENOUGH_STEPS) return `times through all texts: ${all}; 1 to 3 are mostly enough`;
  const more = Math.min(MOST_EPOCHS, Math.ceil(ENOUGH_STEPS / n_steps));
  return `times through all texts: ${all}, which is few${more > n_epochs ? `; with so few texts try ${more}` : ""}`;
}

/** Return how many example queries there will be. */
export function examplesHint(form: Form, check: Pick<Check, "evaluation"> | undefined): string {
  const n_queries = check?.evaluation?.n_queries;
  const kept = "whose results are kept, to read them afterwards";
  return n_queries !== undefined && n_queries < Number(form.n_examples) ? `${kept}; here all ${plural(n_queries, "query", "queries")}` : kept;
}

/** Return what is missing before the server need be asked, by field. */
export function missing(form: Form): { field: keyof Form; message: string }[] {
  const needsQueries = form.evaluation === "separate" && !form.query_data;
  return needsQueries ? [{ field: "query_data", message: "choose the stored data that hold the queries" }] : [];
}

/** Return a number that was typed; what is none as it stands, so that the server says what is wrong with it. */
function typed(value: string): Json | undefined {
  const trimmed = value.trim();
  if (!trimmed) return undefined;
  const number = Number(trimmed);
  return Number.isFinite(number) ? number : trimmed;
}

/**
 * Return the body of `POST /fit` and `POST /check`; what is left to the server is left out.
 *
 * @param hasGpu Whether the server has one; undefined until it has said so.
 */
export function requestOf(form: Form, hasGpu?: boolean): Record<string, Json> {
  const loss = findLoss(form.loss.trim());
  const option = loss?.option && typed(form.loss_option);
  const isOfPairs = loss?.forms.every((name) => name !== "labels");
  return compact({
    model: form.model.trim(),
    train_data: form.train_data,
    run_name: form.run_name.trim() || undefined,
    experiment_name: form.experiment_name.trim() || undefined,
    description: form.description.trim() || undefined,
    loss: form.loss.trim(),
    loss_options: option === undefined ? undefined : { [loss!.option!.name]: option },
    optimizer: "AdamW",
    learning_rate: typed(form.learning_rate),
    scheduler: "linear",
    scheduler_options: { num_warmup_steps: 0.1 },
    epochs: typed(form.epochs),
    batch_size: typed(form.batch_size),
    num_items_per_class: isOfPairs ? undefined : typed(form.num_items_per_class),
    seed: typed(form.seed),
    device: deviceOf(form.device, hasGpu),
    to_onnx: form.to_onnx || undefined,
    callbacks: form.evaluation === "none" ? undefined : [{ name: "EvaluationCallback", options: evaluationOf(form) }],
  });
}

function deviceOf(device: Form["device"], hasGpu: boolean | undefined): string | undefined {
  if (device !== "auto") return device;
  return hasGpu === undefined ? undefined : hasGpu ? "cuda" : "cpu";
}

function evaluationOf(form: Form): Json {
  const data =
    form.evaluation === "hold_out"
      ? { hold_out: typed(form.hold_out) }
      : { query_data: form.query_data, index_data: form.index_data || undefined };
  return compact({ ...data, gather_examples: true, num_example_queries: typed(form.n_examples) });
}

function compact(fields: Record<string, Json | undefined>): Record<string, Json> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Record<string, Json>;
}

/** The field of the form that a field of the server's words belongs to; "" for none. */
export function fieldOf(name: string): keyof Form | "" {
  if (/hold_out/.test(name)) return "hold_out";
  if (/query_data/.test(name)) return "query_data";
  if (/index_data/.test(name)) return "index_data";
  if (/num_example_queries/.test(name)) return "n_examples";
  if (/^(callbacks|EvaluationCallback)/.test(name)) return "evaluation";
  const first = name.split(/[.[]/)[0]!;
  if (first === "loss_options") return "loss_option";
  return Object.hasOwn(RECOMMENDED, first) ? (first as keyof Form) : "";
}

/** Return a name that the server takes for stored data, from a file's. */
export function dataName(fileName: string, taken: string[] = []): string {
  const stem = fileName.replace(/\.(csv|tsv|txt)$/i, "").normalize("NFKD").replace(/\p{M}/gu, "");
  const base = stem.replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[^A-Za-z0-9_]+|-+$/g, "").slice(0, 120) || "data";
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? base : `${base}-${number}`;
    if (!taken.includes(name)) return name;
  }
}
