// Two lists of results beside each other: which model is meant, and what moved.
import type { Hit, Model } from "./records";

/** One side of a comparison: a run or an alias, or the model that a run began with. */
export interface Side {
  artifact: string;
  untuned: boolean;
}

const UNTUNED = "untuned:";

/** Return a side as the address and the choices name it. */
export function sideName({ artifact, untuned }: Side): string {
  return `${untuned ? UNTUNED : ""}${artifact}`;
}

export function sideOf(name: string): Side {
  const untuned = name.startsWith(UNTUNED);
  return { artifact: untuned ? name.slice(UNTUNED.length) : name, untuned };
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
