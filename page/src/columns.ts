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

const CELL = /^\s*(?:"((?:[^"]|"")*)"|([^"\r\n]*?))\s*$/;

/** Return the two cells of a file's first row; null when it has not two. */
export function firstPair(start: string): [string, string] | null {
  const row = start.replace(/^\uFEFF/, "").trimStart().split(/[\r\n]/)[0]!;
  for (const delimiter of ",;\t|") {
    const cells = row.split(delimiter).map((cell) => CELL.exec(cell));
    if (cells.length === 2 && cells.every((cell) => cell !== null)) {
      const [first, second] = cells.map((cell) => (cell![1]?.replaceAll('""', '"') ?? cell![2]!).trim());
      return [first!, second!];
    }
  }
  return null;
}

/** Whether a file's first row was taken for names of columns: then neither of its cells stands in the first row that was read. */
export function isNames([first, second]: [string, string], read: Record<string, unknown> | undefined): boolean {
  return read !== undefined && read.text !== undefined && read.text !== first && read.label !== second;
}
