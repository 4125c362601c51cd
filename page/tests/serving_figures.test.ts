import assert from "node:assert/strict";
import { test } from "node:test";
import { reading } from "../src/prometheus";
import { type History, modelFigures, NO_HISTORY, withReading } from "../src/serving_figures";

function page(ok: number, failed: number): string {
  return [
    `finetuner_encode_requests_total{artifact="a",outcome="ok",role="answer"} ${ok}`,
    `finetuner_encode_requests_total{artifact="a",outcome="DeadlineError",role="answer"} ${failed}`,
    `finetuner_encode_seconds_bucket{artifact="a",stage="inference",le="0.01"} ${ok}`,
    `finetuner_encode_seconds_bucket{artifact="a",stage="inference",le="+Inf"} ${ok}`,
    `finetuner_http_seconds_bucket{route="/encode",le="0.1"} ${ok}`,
    `finetuner_http_seconds_bucket{route="/encode",le="+Inf"} ${ok}`,
    `finetuner_http_seconds_bucket{route="/runs",le="10"} ${100 * ok}`,
    `finetuner_http_seconds_bucket{route="/runs",le="+Inf"} ${100 * ok}`,
    "finetuner_queue_tokens 7",
  ].join("\n");
}

function after(...pages: [at_s: number, ok: number, failed: number][]): History {
  return pages.reduce((history, [at_s, ok, failed]) => withReading(history, reading(page(ok, failed), at_s)), NO_HISTORY);
}

test("one reading tells nothing; two tell rates, errors and latencies", () => {
  assert.deepEqual(modelFigures(after([0, 100, 0])), []);
  const history = after([0, 100, 0], [2, 116, 4]);
  const [figures] = modelFigures(history);
  assert.equal(figures!.requests_per_s, 20 / 2);
  assert.equal(figures!.n_failed, 4);
  assert.deepEqual(figures!.errors, { DeadlineError: 4 });
  assert.ok(Math.abs(figures!.p50_s! - 0.005) < 1e-12);
  assert.equal(figures!.waiting_p95_s, null);
  // Half of the way through the only bucket of /encode; what other routes took does not count.
  assert.ok(Math.abs(history.places[0]!.p50_s! - 0.05) < 1e-12);
  assert.equal(history.places[0]!.queue_tokens, 7);
});

test("a restart in between makes no rate negative", () => {
  const history = after([0, 1000, 9], [2, 1010, 9], [4, 6, 0], [6, 12, 1]);
  assert.ok(history.places.every(({ rates }) => rates.a! >= 0));
  assert.equal(modelFigures(history)[0]!.requests_per_s, (10 + 6 + 7) / 6);
});

test("a minute is remembered of the counters, ten minutes of the curves", () => {
  const history = after(...Array.from({ length: 400 }, (_, i) => [2 * i, 10 * i, 0] as [number, number, number]));
  assert.equal(history.growths.length, 30);
  assert.equal(history.places.length, 300);
  assert.equal(history.places.at(-1)!.rates.a, 5);
});
