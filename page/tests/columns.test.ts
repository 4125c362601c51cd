import assert from "node:assert/strict";
import { test } from "node:test";
import { firstPair, hasKnownHeader, isNames, isReading } from "../src/columns";

test("a first row of known names says what the columns are, in any order and with any delimiter", () => {
  for (const start of ["text,label\na,1", "\uFEFFLabel ; Text\r\n1;a", '"anchor"\t"positive"\n', "text|label|id", "sentence1,sentence2,score"]) {
    assert.equal(hasKnownHeader(start), true, start);
  }
});

test("texts and other names do not", () => {
  for (const start of ["", "my card is lost,lost_card\ntext,label", "question,intent\n", "text\n", "text,label,more\n", "text,text\n"]) {
    assert.equal(hasKnownHeader(start), false, start);
  }
});

test("only labels and pairs without a score can be read the other way", () => {
  assert.deepEqual(["labels", "pairs", "scored pairs", undefined].map(isReading), [true, true, false, false]);
});

test("the first row is read as two cells where it has two", () => {
  assert.deepEqual(firstPair("Question,Topic\na,1"), ["Question", "Topic"]);
  assert.deepEqual(firstPair('\uFEFF"He said ""no""" ; Topic\r\n'), ['He said "no"', "Topic"]);
  assert.equal(firstPair('"one, two",Topic\n'), null); // to be sure takes more than a look
  assert.equal(firstPair("a,b,c"), null);
});

test("a first row that is not among what was read was taken for names", () => {
  assert.equal(isNames(["Question", "Topic"], { text: "Where is my order?", label: "orders" }), true);
  assert.equal(isNames(["Where is my order?", "orders"], { text: "Where is my order?", label: "orders" }), false);
  assert.equal(isNames(["one", "two"], { anchor: "one", positive: "two" }), false);
  assert.equal(isNames(["one", "two"], undefined), false);
});
