import assert from "node:assert/strict";
import { test } from "node:test";
import { isPromotable, type Outcome, type RunRecord } from "../src/records";

const run = (verdict: Outcome | null, n_evaluations: number) =>
  ({ verdict, config: { callbacks: Array(n_evaluations).fill({ name: "EvaluationCallback" }) } }) as unknown as RunRecord;

test("an alias takes what improved; of several evaluations the worst one does not tell all", () => {
  assert.equal(isPromotable(run("improved", 1)), true);
  assert.equal(isPromotable(run("unchanged", 1)), false);
  assert.equal(isPromotable(run("unchanged", 2)), null);
  assert.equal(isPromotable(run("REGRESSED", 2)), false);
  assert.equal(isPromotable(run(null, 0)), false);
});
