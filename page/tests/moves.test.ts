import assert from "node:assert/strict";
import { test } from "node:test";
import { moves, newestSides, otherSide, runOf, searchedOf, sideName, sideOf } from "../src/moves";
import type { Hit, Model, RunRecord, StoredData } from "../src/records";

const hits = (...texts: string[]): Hit[] => texts.map((text) => ({ text, label: "1", score: 0 }));
const model = (id: string, kind: "run" | "alias", artifact_id: string, created: number): Model =>
  ({ id, kind, artifact_id, created, is_loaded: false, dim: null });
const MODELS = [model("first", "run", "a", 1), model("banking/second", "run", "b", 3), model("prod", "alias", "a", 9)];

test("ranks moved up are above nothing, down below, and what is not there is null", () => {
  assert.deepEqual(moves(hits("a", "b", "c", "x"), hits("c", "b", "a")), [2, 0, -2, null]);
});

test("a text that is there twice is matched first with first", () => {
  assert.deepEqual(moves(hits("a", "a", "b"), hits("b", "a", "a")), [1, 1, -2]);
  assert.deepEqual(moves(hits("a", "a"), hits("a")), [0, null]);
});

test("a side is named in the address and read from there", () => {
  for (const side of [{ artifact: "banking/second", untuned: true }, { artifact: "prod", untuned: false }]) {
    assert.deepEqual(sideOf(sideName(side)), side);
  }
});

test("the newest run stands against the model it began with; an alias is no run", () => {
  assert.deepEqual(newestSides(MODELS), [
    { artifact: "banking/second", untuned: false }, { artifact: "banking/second", untuned: true },
  ]);
  assert.equal(newestSides([MODELS[2]!]), null);
});

test("beside an alias stands what its run began with, which can be chosen", () => {
  assert.deepEqual(otherSide({ artifact: "prod", untuned: false }, MODELS), { artifact: "first", untuned: true });
  assert.deepEqual(otherSide({ artifact: "banking/second", untuned: true }, MODELS), { artifact: "banking/second", untuned: false });
  assert.deepEqual(otherSide({ artifact: "gone", untuned: false }, MODELS), { artifact: "gone", untuned: true });
});

test("an alias stands for its run, a run for itself", () => {
  assert.equal(runOf("prod", MODELS), "default/first");
  assert.equal(runOf("banking/second", MODELS), "banking/second");
  assert.equal(runOf("first", MODELS), "default/first");
  assert.equal(runOf("gone", MODELS), null);
  assert.equal(runOf("gone/run", MODELS), "gone/run");
});

test("a run's training data are searched while they are stored and few, or else what is kept with the run", () => {
  const run = (config: Record<string, unknown>) => ({ config }) as unknown as RunRecord;
  const data = (name: string, n_documents: number): StoredData => ({ name, n_documents, size_bytes: 1, created_at: "" });
  const evaluated = run({ train_data: "cards", callbacks: [{ name: "EvaluationCallback" }] });
  const values = (stored: StoredData[]) => searchedOf("default/a", evaluated, stored).map(({ value }) => value);
  assert.deepEqual(values([data("cards", 120)]), ["data:cards", "default/a"]);
  assert.deepEqual(values([data("cards", 500_000)]), ["default/a", "data:cards"]);
  assert.deepEqual(values([data("others", 120)]), ["default/a"]);
  assert.deepEqual(searchedOf("default/a", evaluated, []), [{ value: "default/a", words: "evaluation texts of default/a" }]);
  assert.deepEqual(searchedOf("default/a", run({ train_data: "12 rows" }), []), [{ value: "default/a", words: "training texts of default/a" }]);
});
