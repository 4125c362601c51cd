import assert from "node:assert/strict";
import { test } from "node:test";
import { gauge, growth, grownQuantile, parseMetrics, quantile, rate, reading, total } from "../src/prometheus";

const page = (count: number, artifact = "default/first") =>
  [
    "# HELP finetuner_encode_requests_total Requests ended",
    "# TYPE finetuner_encode_requests_total counter",
    `finetuner_encode_requests_total{artifact="${artifact}",outcome="ok",role="answer"} ${count}.0`,
    `finetuner_encode_seconds_bucket{artifact="${artifact}",le="0.01",stage="inference"} 0.0`,
    `finetuner_encode_seconds_bucket{artifact="${artifact}",le="0.025",stage="inference"} ${count}.0`,
    `finetuner_encode_seconds_bucket{artifact="${artifact}",le="+Inf",stage="inference"} ${count}.0`,
    "finetuner_queue_tokens 12.0",
    "",
  ].join("\n");

test("labels are read with all that may be escaped in them", () => {
  const text = String.raw`a_total{route="/x{y}",name="say \"hi\"\\\n, a=\"b\""} 1.5e3 1700000000`;
  assert.deepEqual(parseMetrics(text), [
    { name: "a_total", labels: { route: "/x{y}", name: 'say "hi"\\\n, a="b"' }, value: 1500 },
  ]);
});

test("comments and what is no sample are left out, infinities are numbers", () => {
  assert.deepEqual(parseMetrics("# TYPE a counter\n<html>\na +Inf\nb -Inf\n\nc 1 2 3"), [
    { name: "a", labels: {}, value: Infinity },
    { name: "b", labels: {}, value: -Infinity },
  ]);
});

test("a rate is what was counted over the time between", () => {
  const readings = [reading(page(10), 100), reading(page(16), 102), reading(page(30), 105)];
  const growths = [growth(readings[0]!, readings[1]!), growth(readings[1]!, readings[2]!)];
  assert.equal(rate(growths, "finetuner_encode_requests_total"), 20 / 5);
  assert.equal(rate([], "finetuner_encode_requests_total"), null);
  assert.equal(gauge(readings[2]!, "finetuner_queue_tokens"), 12);
  assert.equal(gauge(readings[2]!, "finetuner_nothing"), null);
});

test("a restart sets counters to nothing and makes no rate negative", () => {
  const readings = [reading(page(1000), 0), reading(page(4), 2), reading(page(6), 4)];
  const growths = [growth(readings[0]!, readings[1]!), growth(readings[1]!, readings[2]!)];
  assert.equal(total(growths, "finetuner_encode_requests_total"), 4 + 2);
  assert.equal(rate(growths, "finetuner_encode_requests_total"), 1.5);
  assert.ok(growths.every(({ samples }) => samples.every(({ value }) => value >= 0)));
});

test("a series that is new counts from nothing; one that is gone counts no more", () => {
  const grown = growth(reading(page(9, "default/first"), 0), reading(page(5, "default/second"), 2));
  assert.equal(total([grown], "finetuner_encode_requests_total", (l) => l.artifact === "default/second"), 5);
  assert.equal(total([grown], "finetuner_encode_requests_total", (l) => l.artifact === "default/first"), 0);
});

test("a quantile lies evenly within its bucket", () => {
  // Ten under 0.1, thirty from there to 0.2: the 20th of 40 is a third of the way through the second bucket.
  const buckets: [number, number][] = [[0.1, 10], [0.2, 40], [Infinity, 40]];
  assert.ok(Math.abs(quantile(0.5, buckets)! - (0.1 + 0.1 / 3)) < 1e-12);
  assert.equal(quantile(0.25, buckets), 0.1);
  assert.equal(quantile(1, buckets), 0.2);
});

test("above the last bound a quantile is that bound, of nothing it is null, and order does not matter", () => {
  assert.equal(quantile(0.99, [[Infinity, 100], [0.5, 10]]), 0.5);
  assert.equal(quantile(0.5, [[0.1, 0], [Infinity, 0]]), null);
  assert.equal(quantile(0.5, []), null);
});

test("buckets that did not grow bound the quantile from below", () => {
  const grown = growth(reading(page(10), 0), reading(page(20), 2));
  const found = grownQuantile(0.5, [grown], "finetuner_encode_seconds", (l) => l.stage === "inference");
  assert.ok(Math.abs(found! - 0.0175) < 1e-12);
});
