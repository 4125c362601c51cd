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
  metric?: { name: string; before: number; best: number; best_epoch: number } | null;
  verdict?: Outcome | null;
  n_starts?: number;
  position?: number | null;
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

export interface Alias {
  name: string;
  shares: { run: string; weight: number; artifact_id: string }[];
  shadow: { run: string; artifact_id: string } | null;
  history: { run: string; artifact_id: string }[];
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

/** What names a run among all: `experiment/name`. */
export function runKey(run: { experiment_name: string; name: string }): string {
  return `${run.experiment_name}/${run.name}`;
}

export function splitKey(key: string): { experiment_name: string; name: string } {
  const slash = key.indexOf("/");
  return { experiment_name: key.slice(0, slash), name: key.slice(slash + 1) };
}

export function hasEnded(status: Status): boolean {
  return status === "FINISHED" || status === "FAILED" || status === "CANCELLED";
}

/** The path of a run's view on the server, and the query that goes with it. */
export function runPath(name: string, view = ""): string {
  return `/runs/${encodeURIComponent(name)}${view}`;
}
