import assert from "node:assert/strict";
import { test } from "node:test";
import { capital, duration, fixed, milliseconds, percent, size, words } from "../src/format";

test("a metric keeps its digits, whole or not", () => {
  assert.deepEqual([fixed(1), fixed(0.99167), fixed(null), fixed(NaN), fixed(7.25, 1)], ["1.0000", "0.9917", "–", "–", "7.3"]);
});

test("a number and its unit are held together", () => {
  const written = [percent(0.2), milliseconds(0.0056), milliseconds(1.5), size(274_000_000), duration(59), duration(125), duration(7_500)];
  const expected = ["20_%", "5.6_ms", "1.50_s", "274.0_MB", "59_s", "2_min 5_s", "2_h 5_min"];
  assert.deepEqual(written, expected.map((text) => text.replaceAll("_", "\u00a0")));
});

test("metrics are written as people write them", () => {
  assert.deepEqual(["average_precision", "f1_score_at_k", "ndcg_at_k", "r_precision"].map(words), ["average precision", "F1 score at k", "nDCG at k", "R precision"]);
  assert.deepEqual(["recall at k", "nDCG at k", ""].map(capital), ["Recall at k", "nDCG at k", ""]);
});
