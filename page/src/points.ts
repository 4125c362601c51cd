// Points of a map: their colours, their bounds, and where they are between before and after.
import type { Point } from "./records";

/** Labels that get a colour of their own; the others share a grey, as which the eighth colour could be taken. */
export const N_COLOURS = 7;

/** Return the most frequent labels with the place of their colour, the most frequent first; ties by name. */
export function colourPlaces(labels: (string | null)[], n = N_COLOURS): Map<string, number> {
  return new Map(countedLabels(labels).slice(0, n).map(([label], place) => [label, place]));
}

/** Return labels with how many points have them, the most frequent first; ties by name. */
export function countedLabels(labels: (string | null)[]): [label: string, n: number][] {
  const counts = new Map<string, number>();
  for (const label of labels) if (label !== null) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

/** Return where the points are at a share of the way from before to after. */
export function between(before: Point[], after: Point[] | null, share: number): Float32Array {
  const places = new Float32Array(2 * before.length);
  for (let i = 0; i < before.length; i += 1) {
    const [x, y] = before[i]!;
    const [toX, toY] = after?.[i] ?? before[i]!;
    places[2 * i] = x + share * (toX - x);
    places[2 * i + 1] = y + share * (toY - y);
  }
  return places;
}

export interface Bounds {
  x: [number, number];
  y: [number, number];
}

/** Return the square that holds all points, before and after, with a little room around them. */
export function boundsOf(...sets: (Point[] | null)[]): Bounds {
  let left = Infinity, right = -Infinity, bottom = Infinity, top = -Infinity;
  for (const points of sets) {
    for (const [x, y] of points ?? []) {
      left = Math.min(left, x); right = Math.max(right, x);
      bottom = Math.min(bottom, y); top = Math.max(top, y);
    }
  }
  if (left > right) return { x: [-1, 1], y: [-1, 1] };
  const half = 0.53 * Math.max(right - left, top - bottom) || 1;
  const [x, y] = [(left + right) / 2, (bottom + top) / 2];
  return { x: [x - half, x + half], y: [y - half, y + half] };
}

export interface SizeBin {
  from: number;
  to: number;
  n_labels: number;
}

/** Return bins of class sizes with their words and how long their bars are, from 0 to 1. */
export function bars(bins: SizeBin[]): { words: string; n_labels: number; share: number }[] {
  const most = Math.max(...bins.map((bin) => bin.n_labels), 1);
  return bins.map(({ from, to, n_labels }) => ({
    words: from === to ? `${from.toLocaleString("en")}` : `${from.toLocaleString("en")}–${to.toLocaleString("en")}`,
    n_labels,
    share: n_labels / most,
  }));
}
