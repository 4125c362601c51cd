import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { dataName, fieldOf, fitted, missing, RECOMMENDED, requestOf, withLoss } from "../src/fit_request";
import { commandOf, curlOf, type Json, python, pythonOf, shellWord } from "../src/source_text";

const SERVER = { origin: "http://127.0.0.1:51001", asksForToken: false };
const NASTY = [
  `it's "quoted" $HOME \`id\` $(echo no) \\ ; rm -rf / #`,
  "Zeile\nzwei\ttab\r\u0000 € 日本語 🙂 é",
  "'; import os; os.system('id') #",
  "'''\"\"\" {x} %s \\N{DASH} \\u0041",
  "\u202Egnp.exe\u2066 שלום \u2028 \ufeff",
];
const BODY = requestOf({ ...RECOMMENDED, train_data: NASTY[0]!, run_name: NASTY[1]!, description: NASTY[2]! }, true);
BODY.prompts = { [NASTY[3]!]: NASTY[4]!, deep: [null, true, false, 1.5, { a: [NASTY[0]!] }] };

/** What the text does, run by Python with a finetuner that only remembers. */
function ran(text: string): unknown {
  const stub = [
    "import sys, types, json",
    "m = types.ModuleType('finetuner'); c = types.ModuleType('finetuner.callback')",
    "class EvaluationCallback:",
    "    def __init__(self, **options): self.made = {'name': 'EvaluationCallback', 'options': options}",
    "c.EvaluationCallback = EvaluationCallback",
    "class Run:",
    "    def stream_logs(self): return []",
    "m.login = lambda: None",
    "seen = {}",
    "def fit(**settings):",
    "    seen.update(settings, callbacks=[x.made for x in settings.get('callbacks', [])]); return Run()",
    "m.fit = fit",
    "sys.modules.update({'finetuner': m, 'finetuner.callback': c})",
    "exec(compile(sys.stdin.read(), 'page', 'exec'))",
    "print(json.dumps(seen))",
  ].join("\n");
  return JSON.parse(execFileSync("python3", ["-c", stub], { input: text, encoding: "utf8" }));
}

/** What curl would be called with. */
function called(text: string): string[] {
  const script = `curl() { printf '%s\\036' "$@"; }; finetuner() { curl "$@"; }\n${text}`;
  return execFileSync("sh", ["-s"], { input: script, encoding: "utf8" }).split("\x1e").slice(0, -1);
}

test("the Python asks for what the form says, whatever the names hold", () => {
  assert.deepEqual(ran(pythonOf(BODY, SERVER)), BODY);
});

test("the curl command sends what the form says, and the shell runs nothing in it", () => {
  const words = called(curlOf(BODY, SERVER, "key-1"));
  assert.equal(words[0], "http://127.0.0.1:51001/fit");
  assert.deepEqual(JSON.parse(words.at(-1)!), BODY);
  assert.ok(words.includes("Idempotency-Key: key-1"));
});

test("the command's words hold what the form says, and the shell runs nothing in them", () => {
  const name = "it's $(echo no) `id` --x";
  const body = requestOf({ ...RECOMMENDED, train_data: "quora", description: name, run_name: "-r" }, true);
  const words = called(commandOf(body, SERVER));
  assert.deepEqual(words, [
    "fit", "--model=all-minilm-l6-v2", "--data=quora", "--run-name=-r", `--description=${name}`, "--loss=SupConLoss",
    "--loss-option=temperature=0.05", "--optimizer=AdamW", "--scheduler=linear",
    '--set=scheduler_options={"num_warmup_steps":0.1}', "--epochs=3", "--batch-size=64", "--num-items-per-class=2",
    "--device=cuda", "--to-onnx",
    `--set=callbacks=${JSON.stringify(body.callbacks)}`, "--follow",
  ]);
  assert.match(commandOf(body, { origin: "https://a.example.org", asksForToken: true }), /^# .*\nFINETUNER_HOST=https:\/\/a\.example\.org finetuner fit/);
});

test("a word stays one word in a shell", () => {
  for (const word of [...NASTY.map((text) => text.replaceAll("\u0000", "")), "", "~", "-x", "a b"]) {
    assert.deepEqual(called(`curl ${shellWord(word)}`), [word]);
  }
});

test("characters that turn the text around them are written by number", () => {
  const text = python(NASTY[4]!) + curlOf({ a: NASTY[4]! }, SERVER, "k");
  assert.ok(!/[\u202a-\u202e\u2066-\u2069\ufeff]/.test(text));
  assert.ok(text.includes("שלום"));
});

test("another server and its token are named, the token itself never", () => {
  const server = { origin: "https://tune.example.org", asksForToken: true };
  assert.match(pythonOf(BODY, server), /os\.environ\["FINETUNER_HOST"\] = "https:\/\/tune\.example\.org"/);
  assert.match(curlOf(BODY, server, "k"), /-H "Authorization: Bearer \$FINETUNER_TOKEN"/);
  assert.ok(!pythonOf(BODY, SERVER).includes("os.environ"));
});

test("what is recommended makes this request", () => {
  assert.deepEqual(requestOf({ ...RECOMMENDED, train_data: "quora" }, true), {
    model: "all-minilm-l6-v2",
    train_data: "quora",
    loss: "SupConLoss",
    loss_options: { temperature: 0.05 },
    optimizer: "AdamW",
    scheduler: "linear",
    scheduler_options: { num_warmup_steps: 0.1 },
    epochs: 3,
    batch_size: 64,
    num_items_per_class: 2,
    device: "cuda",
    to_onnx: true,
    callbacks: [
      { name: "EvaluationCallback", options: { hold_out: 0.2, gather_examples: true, num_example_queries: 50 } },
    ],
  });
});

test("a run asks for what the server has, unless the reader chose", () => {
  const asked = (device: "auto" | "cuda" | "cpu", hasGpu?: boolean) => requestOf({ ...RECOMMENDED, device }, hasGpu).device;
  assert.deepEqual([asked("auto"), asked("auto", true), asked("auto", false)], [undefined, "cuda", "cpu"]);
  assert.deepEqual([asked("cuda", false), asked("cpu", true)], ["cuda", "cpu"]);
});

test("pairs have no classes, and what is no number goes to the server as it is", () => {
  const form = withLoss({ ...RECOMMENDED, train_data: "p", epochs: "three", evaluation: "separate", query_data: "q" }, "MultipleNegativesRankingLoss");
  const { num_items_per_class, epochs, callbacks, loss_options } = requestOf(form);
  assert.equal(num_items_per_class, undefined);
  assert.equal(epochs, "three");
  assert.deepEqual(loss_options, { temperature: 0.05 });
  assert.deepEqual((callbacks as { options: Json }[])[0]!.options, {
    query_data: "q", gather_examples: true, num_example_queries: 50,
  });
});

test("other data get what is recommended for them, but for what was chosen", () => {
  const none = { loss: false, evaluation: false };
  const scored = fitted(RECOMMENDED, "scored pairs", none);
  assert.deepEqual([scored.loss, scored.loss_option, scored.evaluation], ["CoSENTLoss", "20", "none"]);
  assert.deepEqual(fitted(scored, "labels", none), RECOMMENDED);
  const own = { ...RECOMMENDED, loss: "CircleLoss", loss_option: "" };
  assert.deepEqual(fitted(own, "pairs", { loss: true, evaluation: true }), own);
});

test("an evaluation with data of its own needs queries", () => {
  assert.deepEqual(missing({ ...RECOMMENDED, evaluation: "separate" }).map(({ field }) => field), ["query_data"]);
  assert.deepEqual(missing({ ...RECOMMENDED, evaluation: "separate", query_data: "q" }), []);
  assert.deepEqual(missing(RECOMMENDED), []);
});

test("the server's fields find theirs", () => {
  assert.equal(fieldOf("epochs"), "epochs");
  assert.equal(fieldOf("loss_options.temperature"), "loss_option");
  assert.equal(fieldOf("EvaluationCallback.hold_out"), "hold_out");
  assert.equal(fieldOf("callbacks[0].options.query_data"), "query_data");
  assert.equal(fieldOf("callbacks[0]"), "evaluation");
  assert.equal(fieldOf("n_processes"), "");
  assert.equal(fieldOf("constructor"), "");
});

test("a file's name becomes one that the server takes", () => {
  assert.equal(dataName("quora train (1).csv"), "quora-train-1");
  assert.equal(dataName("Fragen über Öl.CSV"), "Fragen-uber-Ol");
  assert.equal(dataName("../../etc/passwd"), "etc-passwd");
  assert.equal(dataName("日本.csv"), "data");
  assert.equal(dataName("a.csv", ["a", "a-2"]), "a-3");
});
