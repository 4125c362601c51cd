import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteLines } from "../src/byte_lines";

const bytes = (text: string) => new TextEncoder().encode(text);

test("lines are counted in bytes, not in characters", () => {
  const lines = new ByteLines();
  assert.deepEqual(lines.take(bytes("Größe\n✨ fertig\n")), ["Größe", "✨ fertig"]);
  assert.equal(lines.n_bytes, 8 + 11); // ö, ß two bytes each, ✨ three
});

test("a character that is cut in two is one, and the line's half is not counted", () => {
  const lines = new ByteLines();
  const whole = bytes("a ✨\nb");
  assert.deepEqual(lines.take(whole.subarray(0, 3)), []);
  assert.equal(lines.n_bytes, 0);
  assert.deepEqual(lines.take(whole.subarray(3)), ["a ✨"]);
  assert.equal(lines.n_bytes, 6);
  assert.equal(lines.rest(), "b");
});

test("every way of cutting gives the same lines", () => {
  const whole = bytes("é1\n\n漢字\nend\n");
  for (let cut = 0; cut <= whole.length; cut += 1) {
    const lines = new ByteLines();
    const found = [...lines.take(whole.subarray(0, cut)), ...lines.take(whole.subarray(cut))];
    assert.deepEqual(found, ["é1", "", "漢字", "end"]);
    assert.equal(lines.n_bytes, whole.length);
  }
});

test("bytes that are no UTF-8, and a mark of the byte order, keep their number", () => {
  const lines = new ByteLines();
  const found = lines.take(new Uint8Array([0xef, 0xbb, 0xbf, 0x61, 0xff, 0x0a]));
  assert.deepEqual(found, ["\ufeffa\ufffd"]);
  assert.equal(lines.n_bytes, 6);
});
