import assert from "node:assert/strict";
import { test } from "node:test";
import { judgedChanges, over } from "../src/judged";

const changes = {
  average_precision: { before: 0.5, after: 0.541, standard_error: 0.014 }, // 0.041 against 0.028
  recall_at_k: { before: 0.5, after: 0.48, standard_error: 0.014 }, // 0.02 against 0.028
  reciprocal_rank: { before: 0.5, after: 0.5, standard_error: 0 },
};

test("a change counts beyond two standard errors", () => {
  assert.deepEqual(judgedChanges({ outcome: "improved", n_queries: 20, changes }), [
    { name: "average precision", figure: "+0.0410 ± 0.0140", counts: true },
    { name: "recall at k", figure: "−0.0200 ± 0.0140", counts: false },
    { name: "reciprocal rank", figure: "+0.0000 ± 0.0000", counts: false },
  ]);
});

test("the queries are counted, where the server has said how many", () => {
  assert.equal(over({ outcome: "improved", n_queries: 20, changes }), " over 20 queries");
  assert.equal(over({ outcome: "improved", n_queries: 1, changes }), " over 1 query");
  assert.equal(over({ outcome: "improved", changes }), "");
});
