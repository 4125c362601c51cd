// What fine-tuning did to the results of a query.
import type { Example, Examples, Match } from "./records";

export interface Ranked extends Match {
  isHit: boolean;
  /** From 1; null where it is not among the results. */
  before: number | null;
  after: number | null;
}

export interface Changed {
  query: string;
  label: string | null;
  before: Ranked[];
  after: Ranked[];
  /** Rank of the first hit, from 1; null for none. */
  first: { before: number | null; after: number | null };
  n_hits: { before: number; after: number };
  /** Of the hits' discounted gain, 1/log2(rank + 1) each: above 0 when hits came in or went up. */
  gain: number;
}

/** Return the changes of each query, by the caption of the evaluation. */
export function changesOf(examples: Examples): Record<string, Changed[]> {
  const captions = Object.keys(examples.after).filter((caption) => examples.before[caption]);
  return Object.fromEntries(
    captions.map((caption) => {
      const before = new Map(numbered(examples.before[caption]!, keyOfExample));
      const pairs = numbered(examples.after[caption]!, keyOfExample).flatMap(([key, after]) => {
        const example = before.get(key);
        return example ? [changeOf(example, after)] : [];
      });
      return [caption, pairs];
    }),
  );
}

export function changeOf(before: Example, after: Example): Changed {
  const ranks = { before: ranksOf(before.results), after: ranksOf(after.results) };
  const ranked = (results: Match[]): Ranked[] =>
    numbered(results, keyOfMatch).map(([key, match]) => ({
      ...match,
      isHit: match.label !== null && match.label === after.label,
      before: ranks.before.get(key) ?? null,
      after: ranks.after.get(key) ?? null,
    }));
  const lists = { before: ranked(before.results), after: ranked(after.results) };
  return {
    query: after.query,
    label: after.label,
    ...lists,
    first: { before: firstHit(lists.before), after: firstHit(lists.after) },
    n_hits: { before: nHits(lists.before), after: nHits(lists.after) },
    gain: discounted(lists.after) - discounted(lists.before),
  };
}

const EPSILON = 1e-9;

/** Whether a query gained, lost, or neither but for what rounding makes. */
export function wayOf({ gain }: Changed): "gained" | "lost" | "same" {
  return gain > EPSILON ? "gained" : gain < -EPSILON ? "lost" : "same";
}

/** Return what to show first: what gained, where there is none what lost, and else the order that they came in. */
export function firstOrder(changes: Changed[]): "gained" | "lost" | "given" {
  const ways = new Set(changes.map(wayOf));
  return ways.has("gained") ? "gained" : ways.has("lost") ? "lost" : "given";
}

/** Return hits among the first so many results. */
export function nHits(results: Ranked[], limit = results.length): number {
  return results.slice(0, limit).filter((result) => result.isHit).length;
}

/** Return how far a result has come up; what came in or went out is taken as just behind the last. */
export function climb(result: Ranked, n_results: number): number {
  return (result.before ?? n_results + 1) - (result.after ?? n_results + 1);
}

function firstHit(results: Ranked[]): number | null {
  return results.findIndex((result) => result.isHit) + 1 || null;
}

function discounted(results: Ranked[]): number {
  return results.reduce((sum, result, place) => sum + (result.isHit ? 1 / Math.log2(place + 2) : 0), 0);
}

function ranksOf(results: Match[]): Map<string, number> {
  return new Map(numbered(results, keyOfMatch).map(([key], place) => [key, place + 1]));
}

const keyOfMatch = (match: Match) => JSON.stringify([match.text, match.label]);
const keyOfExample = (example: Example) => JSON.stringify([example.query, example.label]);

/** Return items with keys that differ: the first of two like items is told from the second. */
function numbered<T>(items: T[], keyOf: (item: T) => string): [string, T][] {
  const seen = new Map<string, number>();
  return items.map((item) => {
    const key = keyOf(item);
    const n = (seen.get(key) ?? 0) + 1;
    seen.set(key, n);
    return [`${n} ${key}`, item];
  });
}
