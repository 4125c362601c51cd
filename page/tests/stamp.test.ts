import assert from "node:assert/strict";
import { test } from "node:test";
import { markOf, pixelOf, stamp } from "../src/stamp";

test("a colour is its bytes, red first in memory", () => {
  assert.deepEqual([...new Uint8Array(Uint32Array.of(pixelOf("#0f766e")).buffer)], [0x0f, 0x76, 0x6e, 0xff]);
});

test("a mark covers its middle and, in part, its edge, and leaves what lies below its edge", () => {
  const picture = { pixels: new Uint32Array(49), width: 7, height: 7 };
  const [red, blue] = [pixelOf("#ff0000"), pixelOf("#0000ff")];
  stamp(picture, markOf("circle", 1), red, Int32Array.of(2, 3));
  stamp(picture, markOf("circle", 1), blue, Int32Array.of(4, 3));
  const row = [...picture.pixels.slice(21, 28)].map((pixel) => pixel.toString(16).padStart(8, "0"));
  // By hand: the middle is whole, the pixels beside it half; between the two marks the first one's stays.
  assert.deepEqual(row, ["00000000", "800000ff", "ff0000ff", "800000ff", "ffff0000", "80ff0000", "00000000"]);
});

test("a mark that the border cuts is left out and writes nowhere else", () => {
  const picture = { pixels: new Uint32Array(49), width: 7, height: 7 };
  stamp(picture, markOf("diamond", 2), pixelOf("#ffffff"), Int32Array.of(0, 0, 6, 3, 3, -5, 100, 100));
  assert.ok(picture.pixels.every((pixel) => pixel === 0));
});
