import assert from "node:assert/strict";
import { test } from "node:test";
import { adviceFor } from "../src/advice";
import { againstDefaults, compared, defaultsOf, flattened, written } from "../src/settings";

test("nested settings and callbacks have dotted names", () => {
  const config = {
    epochs: 3, loss_options: { temperature: 0.05 }, miner_options: {}, dimensions: [64, 32],
    callbacks: [
      { name: "EvaluationCallback", options: { limit: 20, caption: null } },
      { name: "EvaluationCallback", options: { limit: 5 } },
      { name: "WandBLogger", options: {} },
    ],
  };
  assert.deepEqual(flattened(config), {
    epochs: 3, "loss_options.temperature": 0.05, miner_options: null, dimensions: [64, 32],
    "callbacks.EvaluationCallback.limit": 20, "callbacks.EvaluationCallback.caption": null,
    "callbacks.EvaluationCallback 2.limit": 5, "callbacks.WandBLogger": true,
  });
});

test("what differs between runs; their names do not count", () => {
  const rows = compared([
    { run_name: "a", epochs: 3, loss: "SupConLoss", loss_options: { temperature: 0.05 } },
    { run_name: "b", epochs: 3, loss: "TripletMarginLoss", loss_options: {} },
  ]);
  assert.deepEqual(rows.filter((row) => row.differs).map(({ name, values }) => [name, values]), [
    ["loss", ["SupConLoss", "TripletMarginLoss"]], ["loss_options.temperature", [0.05, null]],
  ]);
  assert.deepEqual(rows.filter((row) => !row.differs).map((row) => row.name), ["epochs", "loss_options"]);
});

test("what is not as its default comes first", () => {
  const description = {
    paths: { "/fit": { post: { requestBody: { content: { "application/json": { schema: {
      properties: { model: { type: "string" }, epochs: { default: 5 }, batch_size: { default: 64 }, lora: {} },
    } } } } } } },
  };
  const defaults = defaultsOf(description);
  const rows = againstDefaults({ model: "m", epochs: 5, batch_size: 32, lora: null }, defaults);
  assert.deepEqual(rows.map((row) => [row.name, row.differs]), [
    ["model", true], ["batch_size", true], ["epochs", false], ["lora", false],
  ]);
  assert.equal(defaultsOf({ paths: {} }), null);
  assert.ok(againstDefaults({ epochs: 3 }, null).every((row) => !row.differs));
});

test("values as text", () => {
  assert.deepEqual([null, "a", [1, 2], true].map(written), ["–", "a", "[1,2]", "true"]);
});

test("the advice follows the cause", () => {
  assert.match(adviceFor("Out of memory: take a smaller batch_size (RuntimeError: …)"), /smaller batch_size/);
  assert.match(adviceFor("TrainingError: the model has collapsed: for 30 steps …"), /lower learning_rate/);
  assert.match(adviceFor("something new"), /last lines/);
});
