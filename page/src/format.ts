// How numbers, times and sizes are written; a number and its unit are never parted at a line's end.

const NBSP = "\u00a0";

export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : value.toFixed(digits);
}

/** Return a metric, with as many digits as those above and below it. */
export function fixed(value: number | null | undefined, digits = 4): string {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits);
}

export function change(before: number, after: number, digits = 4): string {
  const difference = after - before;
  return `${difference >= 0 ? "+" : "−"}${Math.abs(difference).toFixed(digits)}`;
}

export function percent(share: number, digits = 0): string {
  return `${(100 * share).toFixed(digits)}${NBSP}%`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}${NBSP}s`;
  if (s < 3600) return `${Math.floor(s / 60)}${NBSP}min ${s % 60}${NBSP}s`;
  return `${Math.floor(s / 3600)}${NBSP}h ${Math.floor((s % 3600) / 60)}${NBSP}min`;
}

export function milliseconds(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  return seconds < 1 ? `${(1e3 * seconds).toFixed(seconds < 0.01 ? 1 : 0)}${NBSP}ms` : `${seconds.toFixed(2)}${NBSP}s`;
}

export function size(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  for (; bytes >= 1000 && place < units.length - 1; place += 1) bytes /= 1000;
  return `${place ? bytes.toFixed(1) : bytes}${NBSP}${units[place]}`;
}

/** Return how long ago a time was, in one unit. */
export function ago(time: string, now = Date.now()): string {
  const seconds = (now - Date.parse(time)) / 1e3;
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 45) return "just now";
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]] as const) {
    const n = Math.floor(seconds / length);
    if (n >= 1) return `${n} ${unit}${n > 1 ? "s" : ""} ago`;
  }
  return "a minute ago";
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

const ABBREVIATIONS: Record<string, string> = { dcg: "DCG", ndcg: "nDCG", f1: "F1", r: "R" };

/** Return a metric's name as words. */
export function words(name: string): string {
  return name.split("_").map((word) => ABBREVIATIONS[word] ?? word).join(" ");
}

/** Return words as they begin a line. */
export function capital(text: string): string {
  return text.startsWith("nDCG") ? text : text.charAt(0).toUpperCase() + text.slice(1);
}
