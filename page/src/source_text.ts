// Requests as text that does the same: Python, curl, a command. Whatever names and texts hold, it stays inside quotes.

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

const WIDTH = 88;
// Characters that turn or hide the text around them are written by their numbers.
const UNSEEN = /[\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Return a value as Python. */
export function python(value: Json, indent = 0): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return quoted(value);
  const parts = Array.isArray(value)
    ? value.map((part) => python(part, indent + 4))
    : Object.entries(value).map(([name, part]) => `${quoted(name)}: ${python(part, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return wrapped(open!, parts, close!, indent);
}

/** Return a string as JSON and Python both read it. */
export function quoted(value: string): string {
  return escaped(JSON.stringify(value));
}

function escaped(text: string): string {
  return text.replace(UNSEEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function wrapped(open: string, parts: string[], close: string, indent: number): string {
  const line = `${open}${parts.join(", ")}${close}`;
  if (indent + line.length <= WIDTH && !line.includes("\n")) return line;
  const space = " ".repeat(indent + 4);
  return `${open}\n${parts.map((part) => `${space}${part},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** Return a word as a POSIX shell takes it: nothing in single quotes means anything but itself. */
export function shellWord(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** Return JSON with characters that hide or turn text written by their numbers. */
export function json(value: Json): string {
  return escaped(JSON.stringify(value, null, 2));
}

export interface Server {
  /** Such as http://127.0.0.1:51001. */
  origin: string;
  asksForToken: boolean;
}

const DEFAULT_ORIGINS = ["http://127.0.0.1:51001", "http://localhost:51001"];

/** Return Python that does what `POST /fit` with the body does. */
export function pythonOf(body: Record<string, Json>, server: Server): string {
  const { callbacks = [], ...settings } = body;
  const built = (callbacks as { name: string; options: Record<string, Json> }[]).map(({ name, options }) => {
    const parts = Object.entries(options).map(([key, value]) => `${key}=${python(value, 12)}`);
    return wrapped(`${name}(`, parts, ")", 8);
  });
  const names = [...new Set((callbacks as { name: string }[]).map(({ name }) => name))];
  const lines = Object.entries(settings).map(([key, value]) => `    ${key}=${python(value, 4)},`);
  if (built.length) lines.push("    callbacks=[", ...built.map((callback) => `        ${callback},`), "    ],");
  return [
    ...(DEFAULT_ORIGINS.includes(server.origin)
      ? []
      : ["import os", "", `os.environ["FINETUNER_HOST"] = ${quoted(server.origin)}`]),
    "import finetuner",
    ...(names.length ? [`from finetuner.callback import ${names.join(", ")}`] : []),
    "",
    server.asksForToken ? "finetuner.login()  # with the token in FINETUNER_TOKEN" : "finetuner.login()",
    "run = finetuner.fit(",
    ...lines,
    ")",
    "for line in run.stream_logs():",
    "    print(line)",
    "",
  ].join("\n");
}

/** Return a curl command that sends the body to `POST /fit`. */
export function curlOf(body: Record<string, Json>, server: Server, key: string): string {
  return [
    `curl ${shellWord(`${server.origin}/fit`)}`,
    ...(server.asksForToken ? [`-H "Authorization: Bearer $FINETUNER_TOKEN"`] : []),
    `-H 'Content-Type: application/json'`,
    `-H ${shellWord(`Idempotency-Key: ${key}`)}`,
    `-d ${shellWord(json(body))}`,
  ].join(" \\\n  ") + "\n";
}

/** Options of `finetuner fit` whose names are not those of the settings. */
const RENAMED: Record<string, string> = { train_data: "data", experiment_name: "experiment" };
/** Settings that have an option of their own; the others go by `--set`. */
const OPTIONS = [
  "model", "train_data", "run_name", "experiment_name", "description", "loss", "epochs", "batch_size",
  "num_items_per_class", "learning_rate", "optimizer", "scheduler", "device", "seed",
];

/** Return the command that does what `POST /fit` with the body does, and shows how it goes. */
export function commandOf(body: Record<string, Json>, server: Server): string {
  const words = Object.entries(body).flatMap(([name, value]): string[] => {
    const option = `--${(RENAMED[name] ?? name).replaceAll("_", "-")}`;
    if (name === "to_onnx") return value ? [option] : [];
    if (name === "loss_options") return Object.entries(value as object).map(([key, one]) => `--loss-option=${shellWord(`${key}=${compactJson(one)}`)}`);
    if (OPTIONS.includes(name)) return [`${option}=${shellWord(String(value))}`];
    return [`--set=${shellWord(`${name}=${compactJson(value)}`)}`];
  });
  const host = DEFAULT_ORIGINS.includes(server.origin) ? "" : `FINETUNER_HOST=${shellWord(server.origin)} `;
  const note = server.asksForToken ? "# with the token in FINETUNER_TOKEN\n" : "";
  return `${note}${host}finetuner fit ${[...words, "--follow"].join(" \\\n  ")}\n`;
}

function compactJson(value: Json): string {
  return escaped(JSON.stringify(value));
}
