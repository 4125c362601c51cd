// A run's verdict in words: over how many queries, by how much, and how sure that is.
import { change, fixed, plural, words } from "./format";
import type { Judgement } from "./records";

export interface JudgedChange {
  name: string;
  /** By how much, with one standard error behind it. */
  figure: string;
  /** Whether it is more than two standard errors, as the server counts. */
  counts: boolean;
}

const N_STANDARD_ERRORS = 2;

/** Return what changed of each judged metric. */
export function judgedChanges({ changes }: Judgement): JudgedChange[] {
  return Object.entries(changes).map(([name, { before, after, standard_error }]) => ({
    name: words(name),
    figure: `${change(before, after)} ± ${fixed(standard_error)}`,
    counts: Math.abs(after - before) > N_STANDARD_ERRORS * standard_error,
  }));
}

/** Return over how many queries a verdict was reached; empty when that is not known. */
export function over({ n_queries }: Judgement): string {
  return n_queries === undefined ? "" : ` over ${plural(n_queries, "query", "queries")}`;
}
