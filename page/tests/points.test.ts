import assert from "node:assert/strict";
import { test } from "node:test";
import { bars, between, boundsOf, colourPlaces } from "../src/points";

test("the most frequent labels get colours, ties by name, texts without a label none", () => {
  const labels = ["b", "a", null, "c", "c", "b", "a", "z", null, null, null];
  assert.deepEqual([...colourPlaces(labels, 3)], [["a", 0], ["b", 1], ["c", 2]]);
  assert.equal(colourPlaces([null, null]).size, 0);
});

test("a label named like a property of objects is a label", () => {
  assert.deepEqual([...colourPlaces(["__proto__", "constructor", "constructor"])], [["constructor", 0], ["__proto__", 1]]);
});

test("points move evenly from before to after, and stay without an after", () => {
  assert.deepEqual([...between([[0, 0], [2, 4]], [[4, 8], [2, 0]], 0.25)], [1, 2, 2, 3]);
  assert.deepEqual([...between([[1, 2]], null, 0.5)], [1, 2]);
});

test("bounds are one square around all points", () => {
  const { x, y } = boundsOf([[0, 0], [10, 2]], null);
  assert.ok(Math.abs(x[0] + 0.3) < 1e-9 && Math.abs(x[1] - 10.3) < 1e-9);
  assert.ok(Math.abs(y[1] - y[0] - (x[1] - x[0])) < 1e-9);
  assert.deepEqual(boundsOf([]), { x: [-1, 1], y: [-1, 1] });
  assert.ok(boundsOf([[3, 3]]).x[0] < 3); // one point, no extent
});

test("bins of class sizes have words and bars", () => {
  const bins = [{ from: 1, to: 1, n_labels: 5 }, { from: 3, to: 4, n_labels: 20 }, { from: 1025, to: 2048, n_labels: 0 }];
  assert.deepEqual(bars(bins), [
    { words: "1", n_labels: 5, share: 0.25 },
    { words: "3–4", n_labels: 20, share: 1 },
    { words: "1,025–2,048", n_labels: 0, share: 0 },
  ]);
  assert.deepEqual(bars([]), []);
});
