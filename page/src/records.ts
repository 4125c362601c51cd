// What the server's answers hold, as far as the page reads them.

export type Status =
  | "CREATED" | "STARTED" | "INTERRUPTED" | "FINISHED" | "FAILED" | "CANCELLED";
export type Outcome = "improved" | "unchanged" | "REGRESSED";
export type Metrics = Record<string, number>;

export interface Progress {
  epoch: number;
  n_epochs: number;
  step: number;
  n_steps: number;
  n_steps_done: number;
  n_steps_total: number;
  loss: number;
  active: number;
  texts_per_s: number | null;
  eta_s: number | null;
}

export interface RunRecord {
  name: string;
  experiment_name: string;
  status: Status;
  details: string;
  description: string;
  created_at: string;
  changed_at?: string;
  artifact_id: string;
  config: Record<string, unknown>;
  progress?: Progress | null;
  metric?: { name: string; before: number; after: number; best: number; best_epoch: number } | null;
  verdict?: Outcome | null;
  n_starts?: number;
  position?: number | null;
}

/** What a verdict rests on, by the metrics that are judged; one of an earlier version has no `n_queries`. */
export interface Judgement {
  outcome: Outcome;
  n_queries?: number;
  changes: Record<string, { before: number; after: number; standard_error: number }>;
}

export interface RunPage {
  items: RunRecord[];
  total: number;
  page: number;
  size: number;
}

export interface Step {
  epoch: number;
  step: number;
  n_steps: number;
  loss: number;
  batch_loss: number;
  active: number;
  learning_rate: number;
  n_steps_done: number;
  at?: number;
  n_texts?: number;
}

export interface Epoch {
  epoch: number;
  step?: number;
  metrics: Metrics;
}

export interface Match {
  text: string;
  label: string | null;
  distance: number;
}

export interface Example {
  query: string;
  label: string | null;
  results: Match[];
}

export type Examples = Record<"before" | "after", Record<string, Example[]>>;

export type Point = [number, number];

export interface Projection {
  before: Point[];
  after: Point[] | null;
  explained?: { before: number; after: number | null };
}

export interface SpaceMap {
  texts: string[];
  labels: (string | null)[];
  roles: ("query" | "index")[];
  n_texts: number;
  n_shown: number;
  methods: Record<string, Projection>;
}

export interface Target {
  run: string;
  artifact_id: string;
}

export interface Alias {
  name: string;
  target: Target;
  split: { target: Target; weight: number } | null;
  shares: { run: string; weight: number }[];
  shadow: Target | null;
  /** The newest last. */
  history: Target[];
  missing: string[];
  revision: number;
  changed_at: string;
}

export interface StoredData {
  name: string;
  n_documents: number;
  size_bytes: number;
  created_at: string;
}

export interface Complaint {
  field: string;
  message: string;
}

export interface DataReport {
  form: "labels" | "pairs" | "scored pairs";
  n_rows: number;
  n_texts: number;
  n_labels: number;
  n_repeated: number;
  n_ambiguous: number;
  n_alone: number;
  class_sizes: { from: number; to: number; n_labels: number }[];
  largest: { label: string; n_texts: number }[];
  preview: Record<string, string | number | null>[];
  repeated: { text: string; label: string | null; n: number }[];
  ambiguous: { text: string; labels: string[] }[];
  lengths: { p50: number; p99: number; max: number } | null;
}

/** What the server says of a run that has not been started. */
export interface Check {
  problems: Complaint[];
  warnings: Complaint[];
  config: Record<string, unknown> | null;
  train_data: DataReport | null;
  evaluation: { n_queries: number; n_index: number; n_labels: number } | null;
  size_bytes: number | null;
  free_bytes: number | null;
  has_gpu: boolean;
}

export interface Model {
  id: string;
  kind: "run" | "alias";
  artifact_id: string;
  created: number;
  is_loaded: boolean;
  dim: number | null;
}

export interface Hit {
  text: string;
  label: string | null;
  score: number;
}

export type SearchAnswer =
  | { ready: false; n_done: number; n_texts: number }
  | { ready: true; artifact: string; untuned: boolean; n_texts: number; results: Hit[]; encode_s: number; search_s: number };

/** What names a run among all: `experiment/name`. */
export function runKey(run: { experiment_name: string; name: string }): string {
  return `${run.experiment_name}/${run.name}`;
}

export function splitKey(key: string): { experiment_name: string; name: string } {
  const slash = key.indexOf("/");
  return { experiment_name: key.slice(0, slash), name: key.slice(slash + 1) };
}

/** Return the options of a run's evaluations. */
export function evaluationsOf(run: RunRecord): Record<string, unknown>[] {
  const callbacks = (run.config.callbacks ?? []) as { name: string; options?: Record<string, unknown> }[];
  return callbacks.filter(({ name }) => name === "EvaluationCallback").map(({ options }) => options ?? {});
}

/** Whether an alias takes a run without being forced to; null where its one verdict in all does not tell. */
export function isPromotable(run: RunRecord): boolean | null {
  if (run.verdict === "improved") return true;
  // Of several evaluations one that improved is enough, where none got worse.
  return run.verdict === "unchanged" && evaluationsOf(run).length > 1 ? null : false;
}

export function hasEnded(status: Status): boolean {
  return status === "FINISHED" || status === "FAILED" || status === "CANCELLED";
}

/** The path of a run's view on the server, and the query that goes with it. */
export function runPath(name: string, view = ""): string {
  return `/runs/${encodeURIComponent(name)}${view}`;
}

/** The path of stored data on the server; a name may hold one slash, which divides it. */
export function dataPath(name: string): string {
  return `/data/${name.split("/").map(encodeURIComponent).join("/")}`;
}
