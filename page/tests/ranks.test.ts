import assert from "node:assert/strict";
import { test } from "node:test";
import { changeOf, changesOf, climb, firstOrder, nHits, wayOf } from "../src/ranks";
import type { Example } from "../src/records";

function example(...labels: string[]): Example {
  const results = labels.map((word) => ({ text: word, label: word[0]!, distance: 0 }));
  return { query: "q", label: "h", results };
}

test("ranks before and after, what came in and what went out", () => {
  const change = changeOf(example("x1", "h1", "x2"), example("h1", "h2", "x1"));
  assert.deepEqual(change.after.map(({ text, before, after, isHit }) => [text, before, after, isHit]), [
    ["h1", 2, 1, true], ["h2", null, 2, true], ["x1", 1, 3, false],
  ]);
  assert.deepEqual(change.before.map(({ before, after }) => [before, after]), [[1, 3], [2, 1], [3, null]]);
  assert.deepEqual(change.first, { before: 2, after: 1 });
  assert.deepEqual(change.n_hits, { before: 1, after: 2 });
  // 1/log2(2) + 1/log2(3) after, 1/log2(3) before
  assert.ok(Math.abs(change.gain - 1) < 1e-12);
  assert.deepEqual(change.after.map((result) => climb(result, 3)), [1, 2, -2]);
  assert.equal(nHits(change.after, 1), 1);
});

test("no hit at all", () => {
  const change = changeOf(example("x"), example("x"));
  assert.deepEqual(change.first, { before: null, after: null });
  assert.equal(change.gain, 0);
});

test("a text that is twice in the index keeps two ranks", () => {
  const change = changeOf(example("h", "h", "x"), example("x", "h", "h"));
  assert.deepEqual(change.after.map(({ before }) => before), [3, 1, 2]);
});

test("what has no label hits nothing", () => {
  const none: Example = { query: "q", label: null, results: [{ text: "t", label: null, distance: 0 }] };
  assert.equal(changeOf(none, none).after[0]!.isHit, false);
});

test("queries are paired within their caption; one without its like is left out", () => {
  const other = { ...example("h"), query: "r" };
  const changes = changesOf({
    before: { model: [example("x", "h"), other], lost: [other] },
    after: { model: [example("h", "x")], shop: [] },
  });
  assert.deepEqual(Object.keys(changes), ["model"]);
  assert.deepEqual(changes.model!.map((change) => [change.query, change.first.after]), [["q", 1]]);
});

test("what gained is shown first, where there is none what lost", () => {
  const gained = changeOf(example("x1", "h1"), example("h1", "x1")), lost = changeOf(example("h1", "x1"), example("x1", "h1"));
  const same = changeOf(example("h1"), example("h1"));
  assert.deepEqual([gained, lost, same].map(wayOf), ["gained", "lost", "same"]);
  assert.equal(firstOrder([same, lost, gained]), "gained");
  assert.equal(firstOrder([same, lost]), "lost");
  assert.equal(firstOrder([same]), "given");
});
