// What the columns of an uploaded CSV are, as far as its first row says so.

/** What two columns can be, in the server's words for the form of data. */
export const READINGS = { labels: "text and label", pairs: "two texts that mean the same" } as const;
export type Reading = keyof typeof READINGS;

/** Of the first row that is read for it. */
export const HEADER_BYTES = 1_000;

const HEADERS = ["label,text", "id,label,text", "anchor,positive", "anchor,negative,positive", "score,sentence1,sentence2"];

/** Whether a file's first row names columns that the server knows; it then reads them so and not otherwise. */
export function hasKnownHeader(start: string): boolean {
  const row = start.replace(/^\uFEFF/, "").trimStart().split(/[\r\n]/)[0]!;
  const names = row.split(/[,;\t|]/).map((cell) => cell.trim().replace(/^"(.*)"$/, "$1").trim().toLowerCase());
  return HEADERS.includes(names.sort().join(","));
}

/** Whether data that were read so may be read the other way: those of two columns without a score. */
export function isReading(form: string | undefined): form is Reading {
  return form !== undefined && Object.hasOwn(READINGS, form);
}
