// Settings of runs, flat, and where they differ.

type Value = unknown;
export type Flat = Record<string, Value>;

// They name a run and say nothing of how it trains.
const NAMES = new Set(["run_name", "experiment_name", "description", "idempotency_key"]);

/** Return nested settings by dotted names; what is empty is null. */
export function flattened(config: Record<string, Value>, prefix = ""): Flat {
  const result: Flat = {};
  for (const [name, value] of Object.entries(config)) {
    const path = prefix + name;
    if (isEmpty(value)) result[path] = null;
    else if (name === "callbacks" && Array.isArray(value)) Object.assign(result, flatCallbacks(value, path));
    else if (isRecord(value)) Object.assign(result, flattened(value, `${path}.`));
    else result[path] = value;
  }
  return result;
}

function flatCallbacks(callbacks: Value[], path: string): Flat {
  const result: Flat = {}, seen: Record<string, number> = {};
  for (const callback of callbacks) {
    if (!isRecord(callback)) continue;
    const name = String(callback.name);
    seen[name] = (seen[name] ?? 0) + 1;
    const place = `${path}.${name}${seen[name]! > 1 ? ` ${seen[name]}` : ""}`;
    const options = flattened(isRecord(callback.options) ? callback.options : {}, `${place}.`);
    if (Object.keys(options).length) Object.assign(result, options);
    else result[place] = true;
  }
  return result;
}

export interface Difference {
  name: string;
  values: Value[];
  differs: boolean;
}

/** Return the settings of several runs by name; what a run has not is null. */
export function compared(configs: Record<string, Value>[]): Difference[] {
  const flat = configs.map((config) => flattened(config));
  const names = [...new Set(flat.flatMap((each) => Object.keys(each)))];
  return names
    .filter((name) => !NAMES.has(name))
    .map((name) => {
      const values = flat.map((each) => each[name] ?? null);
      return { name, values, differs: new Set(values.map((value) => JSON.stringify(value))).size > 1 };
    });
}

/**
 * Return a run's settings, those that are not as they would be without being given first.
 *
 * @param defaults By name, as the server's description has them; null when it is not known.
 */
export function againstDefaults(config: Record<string, Value>, defaults: Flat | null): Difference[] {
  const settings = Object.entries(flattened(config)).filter(([name]) => !NAMES.has(name));
  const rows = settings.map(([name, value]) => {
    const standard = defaults?.[name] ?? null;
    return { name, values: [value], differs: defaults !== null && !isSame(value, standard) };
  });
  return [...rows.filter((row) => row.differs), ...rows.filter((row) => !row.differs)];
}

/** Return the defaults that an OpenAPI description gives for the body of `POST /fit`. */
export function defaultsOf(description: Value): Flat | null {
  const found = ["paths", "/fit", "post", "requestBody", "content", "application/json", "schema", "properties"]
    .reduce<Value>((value, key) => (isRecord(value) ? value[key] : undefined), description);
  if (!isRecord(found)) return null;
  const defaults = Object.entries(found).map(([name, schema]) => [name, isRecord(schema) ? schema.default : null]);
  return flattened(Object.fromEntries(defaults));
}

export function written(value: Value): string {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function isSame(a: Value, b: Value): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function isRecord(value: Value): value is Record<string, Value> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isEmpty(value: Value): boolean {
  return value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length);
}
