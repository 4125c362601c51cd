// Lines out of bytes that come in pieces, with how many bytes they were: text alone does not tell that.

const NEWLINE = 10;

export class ByteLines {
  /** Bytes of the whole lines so far, their ends included. */
  n_bytes = 0;
  private pieces: Uint8Array[] = [];
  // A mark of the byte order is a character like any other here, or the first line would lose it.
  private decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** Return the lines that a chunk completes, without their ends. */
  take(chunk: Uint8Array): string[] {
    const end = chunk.lastIndexOf(NEWLINE) + 1;
    if (!end) {
      if (chunk.length) this.pieces.push(chunk);
      return [];
    }
    const whole = joined([...this.pieces, chunk.subarray(0, end)]);
    this.pieces = end < chunk.length ? [chunk.subarray(end)] : [];
    this.n_bytes += whole.length;
    return this.decoder.decode(whole.subarray(0, whole.length - 1)).split("\n");
  }

  /** Return what has no end yet. */
  rest(): string {
    return this.decoder.decode(joined(this.pieces));
  }
}

function joined(pieces: Uint8Array[]): Uint8Array {
  if (pieces.length === 1) return pieces[0]!;
  const result = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let place = 0;
  for (const piece of pieces) {
    result.set(piece, place);
    place += piece.length;
  }
  return result;
}
