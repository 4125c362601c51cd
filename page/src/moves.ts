// Two lists of results beside each other: which model is meant, what is searched, and what moved.
import { plural } from "./format";
import { evaluationsOf, type Hit, type Model, type RunRecord, type StoredData } from "./records";

/** One side of a comparison: a run or an alias, or the model that a run began with. */
export interface Side {
  artifact: string;
  untuned: boolean;
}

const UNTUNED = "untuned:";
/** Stands for no side; no run can be called so. */
export const NOBODY = "-";

/** Return a side as the address and the choices name it. */
export function sideName({ artifact, untuned }: Side): string {
  return `${untuned ? UNTUNED : ""}${artifact}`;
}

export function sideOf(name: string): Side {
  const untuned = name.startsWith(UNTUNED);
  return { artifact: untuned ? name.slice(UNTUNED.length) : name, untuned };
}

/** Return the model that a side is looked at beside: the one that its run began with, or of that one the tuned. */
export function otherSide({ artifact, untuned }: Side, models: Model[]): Side {
  const named = models.find(({ id }) => id === artifact);
  const run = models.find(({ kind, artifact_id }) => kind === "run" && artifact_id === named?.artifact_id);
  return { artifact: run?.id ?? artifact, untuned: !untuned };
}

/** Return the newest run and the model that it began with; null when there is none. */
export function newestSides(models: Model[]): [Side, Side] | null {
  const runs = models.filter(({ kind }) => kind === "run");
  if (!runs.length) return null;
  const newest = runs.reduce((best, model) => (model.created > best.created ? model : best));
  return [{ artifact: newest.id, untuned: false }, { artifact: newest.id, untuned: true }];
}

/** Return the run that a run or an alias stands for, as `experiment/run`; null when it is none of those there. */
export function runOf(artifact: string, models: Model[]): string | null {
  const named = models.find(({ id, kind }) => id === artifact && kind === "alias") ?? models.find(({ id }) => id === artifact);
  const run = named && (named.kind === "run" ? named : models.find((m) => m.kind === "run" && m.artifact_id === named.artifact_id));
  if (!run) return artifact.includes("/") ? artifact : null;
  return run.id.includes("/") ? run.id : `default/${run.id}`;
}

/** What stands before the name of stored data among what can be searched. */
export const DATA = "data:";

/** Rows that are searched, and for that encoded by each model, before anybody chose them. */
const MOST_UNASKED = 5_000;

/** Texts that can be searched, as the address and the choices name them. */
export interface Searched {
  value: string;
  words: string;
}

/**
 * Return what of a run can be searched, what is meant by itself first: its training data while they are stored
 * and not too many, and what the server keeps with the run.
 *
 * @param key The run, as `experiment/run`.
 * @param run Its record; null when it is gone.
 */
export function searchedOf(key: string, run: RunRecord | null, stored: StoredData[]): Searched[] {
  const trained = stored.find(({ name }) => name === run?.config.train_data);
  const isEvaluated = run === null || evaluationsOf(run).length > 0;
  const kept = { value: key, words: `${isEvaluated ? "evaluation" : "training"} texts of ${key}` };
  if (!trained) return [kept];
  const data = { value: DATA + trained.name, words: `the training data ${trained.name}, ${plural(trained.n_documents, "row")}` };
  return trained.n_documents <= MOST_UNASKED ? [data, kept] : [kept, data];
}

/** Which results of one side are the same texts on the other. */
function keys(hits: Hit[]): string[] {
  const seen = new Map<string, number>();
  return hits.map(({ text, label }) => {
    const key = JSON.stringify([text, label]);
    const n = seen.get(key) ?? 0;
    seen.set(key, n + 1);
    return `${key}${n}`; // a text that is there twice is matched with its own kind, first with first
  });
}

/** Return how many ranks higher each result is than on the other side; null for one that is not there. */
export function moves(own: Hit[], other: Hit[]): (number | null)[] {
  const ranks = new Map(keys(other).map((key, rank) => [key, rank]));
  return keys(own).map((key, rank) => (ranks.has(key) ? ranks.get(key)! - rank : null));
}
