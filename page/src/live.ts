// Keeps what is shown as new as the server's: by asking again, and by streams that go on after a restart.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, get, isAway, needsToken, type Query, send, token } from "./api";

const LONGEST_PAUSE_MS = 8_000;

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
  return Math.min(LONGEST_PAUSE_MS, 500 * 2 ** (n_failed - 1));
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

/**
 * Follow what a run writes, whole lines at a time, until it has ended.
 *
 * @param path Of a view that takes `follow` and `offset`.
 * @param count How far lines lead: their number, or for a log their bytes.
 * @param onLines Gets lines without their ends.
 */
export async function follow(
  path: string,
  query: Query,
  count: (lines: string[]) => number,
  onLines: (lines: string[]) => void,
  signal: AbortSignal,
): Promise<void> {
  let offset = 0;
  for (let n_failed = 0; !signal.aborted; ) {
    try {
      const answer = await send("GET", path, { query: { ...query, follow: true, offset }, signal });
      n_failed = 0;
      for await (const lines of linesOf(answer)) {
        offset += count(lines);
        onLines(lines);
      }
      // The server ends the stream when the run has ended, and when it stops itself.
      if (answer.headers.get("Run-Ended") === "true") return;
      if (await runHasEnded(path, query, signal)) return;
    } catch (thrown) {
      if (signal.aborted) return;
      const error = asApiError(thrown);
      if (error.status === 404) throw error;
      if (!(thrown instanceof ApiError)) isAway.value = true; // it broke in the middle
      n_failed += 1;
    }
    await pause(pauseAfter(n_failed || 1), signal);
    while (needsToken.value && !signal.aborted) await pause(500, signal);
  }
}

async function runHasEnded(path: string, query: Query, signal: AbortSignal): Promise<boolean> {
  const run = path.slice(0, path.lastIndexOf("/"));
  const { status } = await get<{ status: string }>(`${run}/status`, query, signal);
  return status === "FINISHED" || status === "FAILED" || status === "CANCELLED";
}

async function* linesOf(answer: Response): AsyncGenerator<string[]> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop()!;
    if (parts.length) yield parts;
  }
}
