import assert from "node:assert/strict";
import { test } from "node:test";
import { epochsHint, examplesHint, RECOMMENDED, stepsAnEpoch } from "../src/fit_request";
import type { Check } from "../src/records";

const check = (n_texts: number, n_queries: number) =>
  ({ train_data: { n_texts }, evaluation: { n_queries, n_index: n_queries, n_labels: 5 } }) as unknown as Check;

test("steps are counted without the texts that are held out", () => {
  assert.equal(stepsAnEpoch(RECOMMENDED, check(110, 20)), 2); // 90 texts in batches of 64
  assert.equal(stepsAnEpoch({ ...RECOMMENDED, evaluation: "separate" }, check(130, 20)), 3);
  assert.equal(stepsAnEpoch({ ...RECOMMENDED, batch_size: "" }, check(110, 20)), undefined);
  assert.equal(stepsAnEpoch(RECOMMENDED, undefined), undefined);
});

test("how many epochs are enough depends on the steps that they come to", () => {
  assert.equal(epochsHint(RECOMMENDED, undefined), "times through all texts");
  assert.equal(epochsHint(RECOMMENDED, 100), "times through all texts: about 300 steps in all; 1 to 3 are mostly enough");
  assert.equal(epochsHint(RECOMMENDED, 2), "times through all texts: about 6 steps in all, which is few; with so few texts try 30");
  assert.equal(epochsHint({ ...RECOMMENDED, epochs: "30" }, 1), "times through all texts: about 30 steps in all, which is few");
  assert.equal(epochsHint({ ...RECOMMENDED, epochs: "x" }, 2), "times through all texts");
});

test("no more example queries are promised than there are queries", () => {
  assert.equal(examplesHint(RECOMMENDED, check(110, 20)), "whose results are kept, to read them afterwards; here all 20 queries");
  assert.equal(examplesHint(RECOMMENDED, check(1_000, 200)), "whose results are kept, to read them afterwards");
  assert.equal(examplesHint(RECOMMENDED, undefined), "whose results are kept, to read them afterwards");
});
