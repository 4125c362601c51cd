// A text of the user's: as text, in its own direction, and no longer than is good to read.
import { useState } from "preact/hooks";

const LONGEST = 280;

export function Text({ text }: { text: string }) {
  const [isWhole, setIsWhole] = useState(false);
  const isLong = text.length > LONGEST;
  return (
    <span class="long">
      <span class="text" dir="auto">{isLong && !isWhole ? `${cut(text)}…` : text || "(empty)"}</span>
      {isLong && (
        <>
          {" "}
          <button type="button" class="inline-button" aria-expanded={isWhole} onClick={() => setIsWhole(!isWhole)}>
            {isWhole ? "less" : "all of it"}
          </button>
        </>
      )}
    </span>
  );
}

/** Return a text's beginning, without half a character at its end. */
function cut(text: string): string {
  return text.slice(0, LONGEST).replace(/[\ud800-\udbff]$/, "");
}
