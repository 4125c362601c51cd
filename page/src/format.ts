// How numbers, times and sizes are written.

export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : value.toFixed(digits);
}

export function change(before: number, after: number, digits = 4): string {
  const difference = after - before;
  return `${difference >= 0 ? "+" : "−"}${Math.abs(difference).toFixed(digits)}`;
}

export function percent(share: number, digits = 0): string {
  return `${(100 * share).toFixed(digits)} %`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function milliseconds(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  return seconds < 1 ? `${(1e3 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

export function size(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  for (; bytes >= 1000 && place < units.length - 1; place += 1) bytes /= 1000;
  return `${place ? bytes.toFixed(1) : bytes} ${units[place]}`;
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

/** Return a metric's or setting's name as words. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}
