// Keeps what is shown as new as the server's: by asking again, and by streams that go on after a restart.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, get, isAway, needsToken, type Query, send, starting, token } from "./api";
import { ByteLines } from "./byte_lines";

const LONGEST_PAUSE_MS = 8_000;
// A start is soon over, and whoever waits for it looks on.
const START_PAUSE_MS = 1_000;

export interface Polled<T> {
  value: T | undefined;
  error: ApiError | undefined;
  /** Ask at once, such as after a change of one's own. */
  refresh: () => void;
}

/**
 * Ask for something again and again while it is shown and the page is visible.
 *
 * What was answered last stays while the server is away.
 *
 * @param path Of the server; null for not now.
 * @param interval_ms Between two answers; 0 for once.
 * @param read What makes the value of an answer; JSON when left out.
 */
export function usePolled<T>(
  path: string | null, query: Query = {}, interval_ms = 2_000, read: (answer: Response) => Promise<T> = asJson,
): Polled<T> {
  const value = useSignal<T | undefined>(undefined);
  const error = useSignal<ApiError | undefined>(undefined);
  const round = useSignal(0);
  const key = JSON.stringify([path, query]);
  useEffect(() => {
    value.value = undefined;
    error.value = undefined;
  }, [key]);
  useEffect(() => {
    if (path === null) return;
    const abort = new AbortController();
    void (async () => {
      for (let n_failed = 0; !abort.signal.aborted; ) {
        try {
          value.value = await read(await send("GET", path, { query, signal: abort.signal }));
          error.value = undefined;
          n_failed = 0;
          if (!interval_ms) return;
        } catch (thrown) {
          if (abort.signal.aborted) return;
          error.value = asApiError(thrown);
          n_failed += 1;
        }
        await pause(n_failed ? pauseAfter(n_failed) : interval_ms, abort.signal);
        await visible(abort.signal);
      }
    })();
    return () => abort.abort();
  }, [key, interval_ms, round.value, token.value]);
  return { value: value.value, error: error.value, refresh: () => (round.value += 1) };
}

function asJson<T>(answer: Response): Promise<T> {
  return answer.json();
}

export function asApiError(thrown: unknown): ApiError {
  return thrown instanceof ApiError ? thrown : new ApiError(0, "Error", String(thrown));
}

function pauseAfter(n_failed: number): number {
  return Math.min(starting.value ? START_PAUSE_MS : LONGEST_PAUSE_MS, 500 * 2 ** (n_failed - 1));
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Wait until the page is looked at. */
function visible(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const check = () => {
      if (!document.hidden || signal.aborted) {
        document.removeEventListener("visibilitychange", check);
        resolve();
      }
    };
    document.addEventListener("visibilitychange", check);
    signal.addEventListener("abort", check, { once: true });
    check();
  });
}

export interface Following {
  /** Tells the run from a later one of the same name. */
  artifact_id: string;
  /** What the offset counts: `bytes` for a log, which is one text, `lines` for the others. */
  unit: "bytes" | "lines";
  /** Gets lines without their ends. */
  onLines: (lines: string[]) => void;
}

/**
 * Follow what a run writes, whole lines at a time and each once, until it has ended.
 *
 * A browser has six connections to a server for all its tabs, so one that is not looked at lets go of its own.
 *
 * @param path Of a view that takes `follow` and `offset`.
 */
export async function follow(
  path: string, query: Query, { artifact_id, unit, onLines }: Following, signal: AbortSignal,
): Promise<void> {
  let offset = 0;
  for (let n_failed = 0; !signal.aborted; ) {
    await visible(signal);
    const connection = whileSeen(signal);
    try {
      const answer = await send("GET", path, { query: { ...query, follow: true, offset }, signal: connection.signal });
      if (answer.headers.get("Run-Id") !== artifact_id) throw gone();
      n_failed = 0;
      const start = offset, bytes = new ByteLines();
      for await (const lines of linesOf(answer, bytes)) {
        offset = unit === "bytes" ? start + bytes.n_bytes : offset + lines.length;
        onLines(lines);
      }
      // A stream ends with the run, and with the server; only what had ended before it began is whole.
      if (answer.headers.get("Run-Ended") === "true") {
        if (unit === "bytes" && bytes.rest()) onLines([bytes.rest()]);
        return;
      }
    } catch (thrown) {
      if (signal.aborted) return;
      if (thrown instanceof ApiError && isFinal(thrown)) throw thrown;
      if (!connection.signal.aborted) {
        if (!(thrown instanceof ApiError)) isAway.value = true; // it broke in the middle
        n_failed += 1;
      }
    } finally {
      connection.end();
    }
    await pause(pauseAfter(n_failed || 1), signal);
    while (needsToken.value && !signal.aborted) await pause(500, signal);
  }
}

function gone(): ApiError {
  return new ApiError(404, "RunNotFoundError", "The run was deleted, and another one has its name now.");
}

/** Whether asking again would be refused again. */
function isFinal({ status }: ApiError): boolean {
  return status >= 400 && status < 500 && ![401, 408, 429].includes(status);
}

const HIDDEN_MS = 5_000;

/** Return a signal that is raised with another, or some seconds after the page went out of sight. */
function whileSeen(outer: AbortSignal): { signal: AbortSignal; end: () => void } {
  const inner = new AbortController();
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(() => inner.abort(), HIDDEN_MS);
  };
  const abort = () => inner.abort();
  document.addEventListener("visibilitychange", look);
  outer.addEventListener("abort", abort);
  const end = () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
    outer.removeEventListener("abort", abort);
  };
  return { signal: inner.signal, end };
}

async function* linesOf(answer: Response, bytes: ByteLines): AsyncGenerator<string[]> {
  const reader = answer.body!.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = bytes.take(value);
    if (lines.length) yield lines;
  }
}

export interface Followed<T> {
  items: T[];
  /** Whether something has come, or nothing will. */
  isThere: boolean;
  error?: ApiError;
}

const FLUSH_MS = 250;

/**
 * Follow a run's lines while they are shown.
 *
 * @param path Null for not now.
 * @param parse Makes an item of a line; null for none.
 * @param n_most Items kept, the last ones.
 */
export function useFollowed<T>(
  path: string | null, query: Query, following: Omit<Following, "onLines">,
  parse: (line: string) => T | null, n_most = Infinity,
): Followed<T> {
  const shown = useSignal<Followed<T>>({ items: [], isThere: false });
  useEffect(() => {
    shown.value = { items: [], isThere: false };
    if (path === null) return;
    const abort = new AbortController();
    let items: T[] = [], timer = 0;
    const show = (error?: ApiError) => {
      clearTimeout(timer);
      timer = 0;
      shown.value = { items: items.slice(), isThere: true, error };
    };
    const onLines = (lines: string[]) => {
      for (const line of lines) {
        const item = parse(line);
        if (item !== null) items.push(item);
      }
      if (items.length > n_most) items = items.slice(-n_most);
      timer ||= window.setTimeout(show, FLUSH_MS);
    };
    follow(path, query, { ...following, onLines }, abort.signal)
      .then(() => abort.signal.aborted || show())
      .catch((thrown) => abort.signal.aborted || show(asApiError(thrown)));
    return () => (abort.abort(), clearTimeout(timer));
  }, [path, JSON.stringify(query), following.artifact_id, token.value]);
  return shown.value;
}

/** Return a line's value; null for one that a power cut has emptied. */
export function fromJson<T>(line: string): T | null {
  return line ? JSON.parse(line) : null;
}

interface LinePage<T> {
  items: T[];
  offset: number;
  ended: boolean;
}

/**
 * Ask for a run's new lines now and then: takes no connection for itself, as a stream would.
 *
 * @param path Of `epochs` or `steps`; null for not now.
 */
export function useNewLines<T>(path: string | null, query: Query, artifact_id: string, interval_ms = 3_000): Followed<T> {
  const shown = useSignal<Followed<T>>({ items: [], isThere: false });
  useEffect(() => {
    shown.value = { items: [], isThere: false };
    if (path === null) return;
    const abort = new AbortController();
    void (async () => {
      for (let offset = 0, n_failed = 0; !abort.signal.aborted; ) {
        try {
          const page = await get<LinePage<T>>(path, { ...query, offset }, abort.signal);
          n_failed = 0;
          const isNew = page.offset > offset;
          offset = page.offset;
          if (isNew || !shown.value.isThere || shown.value.error) {
            shown.value = { items: [...shown.value.items, ...page.items], isThere: true };
          }
          if (isNew) continue;
          if (page.ended) return;
        } catch (thrown) {
          if (abort.signal.aborted) return;
          const error = asApiError(thrown);
          shown.value = { ...shown.value, isThere: true, error };
          if (isFinal(error)) return;
          n_failed += 1;
        }
        await pause(n_failed ? pauseAfter(n_failed) : interval_ms, abort.signal);
        await visible(abort.signal);
      }
    })();
    return () => abort.abort();
  }, [path, JSON.stringify(query), artifact_id, token.value]);
  return shown.value;
}
