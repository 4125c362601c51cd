// What is done to numbers before they are drawn.
import type { Epoch, Step } from "./records";

export interface Points {
  x: number[];
  y: number[];
}

/**
 * Return an exponential mean over about so many values, from the first one on.
 *
 * Divided by the weights so far, so that the beginning is not drawn towards zero.
 */
export function smoothed(values: number[], n_values: number): number[] {
  const keep = 1 - 1 / Math.max(1, n_values);
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

/**
 * Return at most so many places that show the same curve: the lowest and the highest of each part.
 *
 * @param y One value a place.
 * @param n_most At least 4.
 */
export function decimated(y: number[], n_most: number): number[] {
  if (y.length <= n_most) return y.map((_, place) => place);
  const n_parts = Math.floor((n_most - 2) / 2);
  const chosen = new Set([0, y.length - 1]);
  for (let part = 0; part < n_parts; part += 1) {
    const start = Math.floor((part * y.length) / n_parts);
    const end = Math.floor(((part + 1) * y.length) / n_parts);
    let low = start, high = start;
    for (let place = start; place < end; place += 1) {
      if (y[place]! < y[low]!) low = place;
      if (y[place]! > y[high]!) high = place;
    }
    chosen.add(low).add(high);
  }
  return [...chosen].sort((a, b) => a - b);
}

/** Return at most so many points that show the same curve. */
export function thinned(x: number[], y: number[], n_most: number): Points {
  const places = decimated(y, n_most);
  return { x: places.map((place) => x[place]!), y: places.map((place) => y[place]!) };
}

/** Return texts a second by step, each over the steps of its epoch before it, at most so many. */
export function throughput(steps: Step[], n_steps: number): Points {
  const result: Points = { x: [], y: [] };
  let first = 0; // of the epoch: what lies between two epochs is evaluation, not training
  let sums: number[] = [];
  steps.forEach((step, place) => {
    if (place === 0 || step.epoch !== steps[place - 1]!.epoch) [first, sums] = [place, []];
    sums.push((sums.at(-1) ?? 0) + (step.n_texts ?? 0));
    const from = Math.max(first, place - n_steps);
    const seconds = (step.at ?? NaN) - (steps[from]!.at ?? NaN);
    if (!(seconds > 0)) return;
    result.x.push(step.n_steps_done);
    result.y.push((sums.at(-1)! - sums[from - first]!) / seconds);
  });
  return result;
}

/**
 * Return the steps with those that came twice left out.
 *
 * A run that begins anew, or goes on from a checkpoint, may write a step again; the newer one counts.
 */
export function inOrder(steps: Step[]): Step[] {
  const result: Step[] = [];
  for (const step of steps) {
    while (result.length && result.at(-1)!.n_steps_done >= step.n_steps_done) result.pop();
    result.push(step);
  }
  return result;
}

/** Return where an evaluation stands on an axis of epochs: within one by its steps. */
export function epochPlace(epoch: Epoch, n_steps: number | undefined): number {
  return epoch.step === undefined || !n_steps ? epoch.epoch : epoch.epoch - 1 + epoch.step / n_steps;
}

/** Return the evaluations by their place, the last of those that share one. */
export function evaluationsByPlace(epochs: Epoch[], n_steps: number | undefined): [number, Epoch][] {
  const byPlace = new Map(epochs.map((epoch) => [epochPlace(epoch, n_steps), epoch] as const));
  return [...byPlace].sort(([a], [b]) => a - b);
}

export const METRICS = [
  "average_precision", "reciprocal_rank", "recall_at_k", "precision_at_k", "f1_score_at_k",
  "hit_at_k", "ndcg_at_k", "dcg_at_k", "r_precision",
] as const;

/** Return the captions of evaluations; an empty one for that without. */
export function captionsOf(epochs: Epoch[]): string[] {
  const found = new Set<string>();
  for (const name of Object.keys(epochs[0]?.metrics ?? {})) {
    const metric = METRICS.find((metric) => name === metric || name.endsWith(`_${metric}`));
    if (metric) found.add(name === metric ? "" : name.slice(0, -metric.length - 1));
  }
  return [...found];
}

/** Return how high a metric can get; undefined for the one without a bound. */
export function mostOf(metric: string): number | undefined {
  return metric === "dcg_at_k" ? undefined : 1;
}

export function metricName(caption: string, metric: string): string {
  return caption ? `${caption}_${metric}` : metric;
}

export interface Summary {
  before: number | null;
  best: number | null;
  best_epoch: number | null;
  after: number | null;
}

/** Return a metric before training, at its best evaluation since, and at the last one. */
export function summaryOf(epochs: Epoch[], name: string): Summary {
  const known = epochs.filter(({ metrics }) => metrics[name] !== undefined);
  const tuned = known.filter(({ epoch }) => epoch > 0);
  const best = tuned.reduce<Epoch | null>(
    (best, each) => (best === null || each.metrics[name]! > best.metrics[name]! ? each : best), null,
  );
  return {
    before: known.find(({ epoch }) => epoch === 0)?.metrics[name] ?? null,
    best: best?.metrics[name] ?? null,
    best_epoch: best?.epoch ?? null,
    after: tuned.at(-1)?.metrics[name] ?? null,
  };
}

const SPANS = [1, 10, 50, 200];

/** Return over how many steps curves of so many can be smoothed: not over more than half of them. */
export function spansFor(n_steps: number): number[] {
  return SPANS.filter((span) => span === 1 || 2 * span <= n_steps);
}
