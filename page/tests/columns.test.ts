import assert from "node:assert/strict";
import { test } from "node:test";
import { hasKnownHeader, isReading } from "../src/columns";

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
