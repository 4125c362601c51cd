import assert from "node:assert/strict";
import { test } from "node:test";
import {
  captionsOf, decimated, epochPlace, evaluationsByPlace, inOrder, METRICS, mostOf, smoothed, spansFor, summaryOf, thinned, throughput,
} from "../src/curves";
import type { Epoch, Step } from "../src/records";

function step(n_steps_done: number, more: Partial<Step> = {}): Step {
  return { epoch: 1, step: n_steps_done, n_steps: 100, loss: 0, batch_loss: 0, active: 1, learning_rate: 0, n_steps_done, ...more };
}

test("curves are smoothed over half their steps at most", () => {
  assert.deepEqual([6, 20, 99, 1_000].map(spansFor), [[1], [1, 10], [1, 10], [1, 10, 50, 200]]);
});

test("smoothing over two values, by hand", () => {
  // weights 1/2, 1 and 1/4, 1/2, 1
  assert.deepEqual(smoothed([4, 1, 7], 2), [4, (2 + 1) / 1.5, (1 + 0.5 + 7) / 1.75]);
});

test("smoothing over one value changes nothing, and a constant stays", () => {
  assert.deepEqual(smoothed([3, 1, 2], 1), [3, 1, 2]);
  smoothed(Array(50).fill(0.5), 20).forEach((value) => assert.ok(Math.abs(value - 0.5) < 1e-12));
});

test("few points are all drawn", () => {
  assert.deepEqual(decimated([1, 2, 3], 4), [0, 1, 2]);
});

test("a single peak and both ends survive decimation", () => {
  const y = Array.from({ length: 100_000 }, () => 1);
  y[54_321] = 9;
  y[77_777] = -9;
  const places = decimated(y, 1000);
  assert.ok(places.length <= 1000);
  for (const place of [0, 54_321, 77_777, 99_999]) assert.ok(places.includes(place));
  assert.deepEqual(places, [...places].sort((a, b) => a - b));
});

test("throughput is texts over seconds, and does not count what lies between epochs", () => {
  const steps = [
    step(1, { at: 100, n_texts: 64 }), step(2, { at: 101, n_texts: 64 }), step(3, { at: 103, n_texts: 32 }),
    step(4, { at: 200, n_texts: 64, epoch: 2 }), step(5, { at: 202, n_texts: 64, epoch: 2 }),
  ];
  assert.deepEqual(throughput(steps, 10), { x: [2, 3, 5], y: [64, 32, 32] });
  assert.deepEqual(throughput(steps, 1), { x: [2, 3, 5], y: [64, 16, 32] });
  assert.deepEqual(throughput([step(1), step(2)], 10), { x: [], y: [] });
});

test("a step that is written again takes the place of the first, and of those behind it", () => {
  const steps = [step(1), step(2), step(3, { loss: 1 }), step(2, { loss: 5 }), step(3, { loss: 6 })];
  assert.deepEqual(inOrder(steps).map((each) => [each.n_steps_done, each.loss]), [[1, 0], [2, 5], [3, 6]]);
});

test("an evaluation within an epoch stands between the epochs", () => {
  assert.equal(epochPlace({ epoch: 2, step: 25, metrics: {} }, 100), 1.25);
  assert.equal(epochPlace({ epoch: 2, metrics: {} }, 100), 2);
});

const EPOCHS: Epoch[] = [
  { epoch: 0, metrics: { average_precision: 0.5, shop_average_precision: 0.1 } },
  { epoch: 1, metrics: { average_precision: 0.9, shop_average_precision: 0.2 } },
  { epoch: 2, metrics: { average_precision: 0.7, shop_average_precision: 0.3 } },
  { epoch: 2, metrics: { average_precision: 0.8, shop_average_precision: 0.3 } },
];

test("of two evaluations of one epoch the last is drawn", () => {
  const found = evaluationsByPlace(EPOCHS, 10).map(([place, epoch]) => [place, epoch.metrics.average_precision]);
  assert.deepEqual(found, [[0, 0.5], [1, 0.9], [2, 0.8]]);
});

test("a metric before, at its best, and at the end", () => {
  assert.deepEqual(summaryOf(EPOCHS, "average_precision"), { before: 0.5, best: 0.9, best_epoch: 1, after: 0.8 });
  assert.deepEqual(summaryOf([], "average_precision"), { before: null, best: null, best_epoch: null, after: null });
});

test("captions stand before the names of metrics", () => {
  assert.deepEqual(captionsOf(EPOCHS), ["", "shop"]);
  assert.deepEqual(captionsOf([{ epoch: 0, metrics: { ndcg_at_k: 1, dcg_at_k: 1 } }]), [""]);
});

test("a thinned curve keeps its ends and its peak, each at its place", () => {
  const x = Array.from({ length: 100 }, (_, i) => 10 * i);
  const y = x.map((at) => (at === 570 ? 9 : at / 1000));
  const { x: places, y: values } = thinned(x, y, 10);
  assert.ok(places.length <= 10);
  assert.deepEqual([places[0], places.at(-1), values[places.indexOf(570)]], [0, 990, 9]);
  assert.deepEqual(thinned([1, 2], [3, 4], 10), { x: [1, 2], y: [3, 4] });
});

test("all metrics but the discounted gain end at 1", () => {
  assert.deepEqual(METRICS.filter((metric) => mostOf(metric) !== 1), ["dcg_at_k"]);
});
