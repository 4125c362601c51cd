import assert from "node:assert/strict";
import { test } from "node:test";
import { phaseOf } from "../src/phase";

const at = (n_steps_done: number) => ({ n_steps_done, n_steps_total: 10 });

test("a run at its steps has no phase, one behind them has", () => {
  assert.equal(phaseOf(at(9), "Epoch 1/1, batch 9/10, loss 0.100"), "");
  assert.equal(phaseOf(at(5), "Evaluating after epoch 1"), "");
  assert.equal(phaseOf({ n_steps_done: 0, n_steps_total: 0 }, "Loading"), "");
  assert.equal(phaseOf(at(10), "Epoch 1/1, batch 9/10, loss 0.100"), "Finishing");
  assert.equal(phaseOf(at(10), "Exporting to ONNX"), "Exporting to ONNX");
  assert.equal(phaseOf(at(5), "Exporting to ONNX"), "Exporting to ONNX"); // it stopped early
});
