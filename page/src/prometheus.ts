// Reads the server's counts and times, in the text format of Prometheus, and what follows from two readings.

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED: Record<string, string> = { n: "\n", '"': '"', "\\": "\\" };

/** Return the samples of a page of figures; lines that are none are left out. */
export function parseMetrics(text: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) continue;
    const labels = [...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name!, unescape(value!)]);
    samples.push({ name: found[1]!, labels: Object.fromEntries(labels), value: asNumber(found[3]!) });
  }
  return samples;
}

function unescape(value: string): string {
  return value.replace(/\\(.)/g, (whole, letter) => ESCAPED[letter] ?? whole);
}

function asNumber(word: string): number {
  if (word === "+Inf" || word === "Inf") return Infinity;
  return word === "-Inf" ? -Infinity : Number(word);
}

/** One reading of the figures. */
export interface Reading {
  at_s: number;
  samples: Map<string, Sample>;
}

export function reading(text: string, at_s: number): Reading {
  const keyed = parseMetrics(text).map((s) => [`${s.name}${JSON.stringify(Object.entries(s.labels).sort())}`, s] as const);
  return { at_s, samples: new Map(keyed) };
}

/** What the counters grew by between two readings. */
export interface Growth {
  from_s: number;
  to_s: number;
  samples: Sample[];
}

const COUNTERS = /_(total|bucket|count|sum)$/;

/**
 * Return what the counters grew by. A counter that fell began again at nothing, as after a restart: it grew by what it
 * is now.
 */
export function growth(before: Reading, after: Reading): Growth {
  const samples: Sample[] = [];
  for (const [key, sample] of after.samples) {
    if (!COUNTERS.test(sample.name)) continue;
    const earlier = before.samples.get(key)?.value ?? 0;
    samples.push({ ...sample, value: sample.value >= earlier ? sample.value - earlier : sample.value });
  }
  return { from_s: before.at_s, to_s: after.at_s, samples };
}

export type Filter = (labels: Record<string, string>) => boolean;

/** Return by how much a counter grew in all of the growths, over the labels that are asked for. */
export function total(growths: Growth[], name: string, filter: Filter = () => true): number {
  let sum = 0;
  for (const { samples } of growths) {
    for (const sample of samples) if (sample.name === name && filter(sample.labels)) sum += sample.value;
  }
  return sum;
}

/** Return how often a second a counter counted; null before two readings. */
export function rate(growths: Growth[], name: string, filter?: Filter): number | null {
  const length_s = growths.reduce((sum, { from_s, to_s }) => sum + to_s - from_s, 0);
  return length_s > 0 ? total(growths, name, filter) / length_s : null;
}

/**
 * Return a quantile of a histogram as `histogram_quantile` of Prometheus does: even within a bucket, and the last
 * bound for what lies above it.
 *
 * @param share 0 to 1.
 * @param buckets Counts up to each bound, the last one Infinity.
 * @returns Null when nothing was counted.
 */
export function quantile(share: number, buckets: [bound: number, count: number][]): number | null {
  const sorted = [...buckets].sort((a, b) => a[0] - b[0]);
  const all = sorted.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const rank = share * all;
  const place = sorted.findIndex(([, count]) => count >= rank);
  const [low, below] = sorted[place - 1] ?? [0, 0];
  const [high, count] = sorted[place]!;
  if (high === Infinity) return low;
  return count === below ? high : low + ((high - low) * (rank - below)) / (count - below);
}

/** Return a quantile of what a histogram gained; `name` without `_bucket`. */
export function grownQuantile(share: number, growths: Growth[], name: string, filter: Filter = () => true): number | null {
  const counts = new Map<number, number>();
  for (const { samples } of growths) {
    for (const { name: found, labels, value } of samples) {
      if (found !== `${name}_bucket` || !filter(labels)) continue;
      const bound = asNumber(labels.le!);
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
  }
  return quantile(share, [...counts]);
}

/** Return the value of a gauge; null when it is not there. */
export function gauge(read: Reading, name: string): number | null {
  const found = [...read.samples.values()].filter((sample) => sample.name === name);
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
}
