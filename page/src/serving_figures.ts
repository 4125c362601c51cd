// What the serving view shows of the figures: of each model over the last minute, and curves of the last ten.
import { gauge, type Growth, growth, grownQuantile, rate, type Reading, total } from "./prometheus";

const WINDOW_S = 60;
/** A rate over less would jump with each request. */
const RATE_WINDOW_S = 10;
const KEPT_S = 600;
const ENCODE_ROUTES = ["/encode", "/v1/embeddings", "/similarity", "/rank"];
const REQUESTS = "finetuner_encode_requests_total";
const SECONDS = "finetuner_encode_seconds";

/** One place of the curves. */
export interface Place {
  at_s: number;
  /** Requests a second by model. */
  rates: Record<string, number>;
  p50_s: number | null;
  p95_s: number | null;
  queue_tokens: number | null;
}

export interface History {
  last: Reading | null;
  growths: Growth[];
  places: Place[];
}

export const NO_HISTORY: History = { last: null, growths: [], places: [] };

/** Return the history with one more reading. */
export function withReading(history: History, read: Reading): History {
  const { last } = history;
  if (!last || read.at_s <= last.at_s) return { ...history, last: read };
  const growths = [...history.growths, growth(last, read)].filter(({ to_s }) => to_s > read.at_s - WINDOW_S);
  const recent = growths.filter(({ to_s }) => to_s > read.at_s - RATE_WINDOW_S);
  const ofRoutes = (labels: Record<string, string>) => ENCODE_ROUTES.includes(labels.route ?? "");
  const place: Place = {
    at_s: read.at_s,
    rates: Object.fromEntries(artifactsOf(growths).map((name) => [name, rate(recent, REQUESTS, (l) => l.artifact === name) ?? 0])),
    p50_s: grownQuantile(0.5, growths, "finetuner_http_seconds", ofRoutes),
    p95_s: grownQuantile(0.95, growths, "finetuner_http_seconds", ofRoutes),
    queue_tokens: gauge(read, "finetuner_queue_tokens"),
  };
  const places = [...history.places, place].filter(({ at_s }) => at_s > read.at_s - KEPT_S);
  return { last: read, growths, places };
}

function artifactsOf(growths: Growth[]): string[] {
  const found = growths.flatMap(({ samples }) => samples.filter(({ name }) => name === REQUESTS).map(({ labels }) => labels.artifact ?? ""));
  return [...new Set(found)].sort();
}

/** What one model did in the last minute. */
export interface ModelFigures {
  /** Empty for requests that named none that is there. */
  artifact: string;
  requests_per_s: number;
  n_failed: number;
  /** By kind of error. */
  errors: Record<string, number>;
  p50_s: number | null;
  p95_s: number | null;
  waiting_p95_s: number | null;
}

export function modelFigures({ growths }: History): ModelFigures[] {
  return artifactsOf(growths).map((artifact) => {
    const errors: Record<string, number> = {};
    for (const { samples } of growths) {
      for (const { name, labels, value } of samples) {
        const isError = name === REQUESTS && labels.artifact === artifact && labels.outcome !== "ok" && value > 0;
        if (isError) errors[labels.outcome!] = (errors[labels.outcome!] ?? 0) + value;
      }
    }
    const of = (stage: string) => (labels: Record<string, string>) => labels.artifact === artifact && labels.stage === stage;
    return {
      artifact,
      requests_per_s: rate(growths, REQUESTS, (labels) => labels.artifact === artifact) ?? 0,
      n_failed: total(growths, REQUESTS, (labels) => labels.artifact === artifact && labels.outcome !== "ok"),
      errors,
      p50_s: grownQuantile(0.5, growths, SECONDS, of("inference")),
      p95_s: grownQuantile(0.95, growths, SECONDS, of("inference")),
      waiting_p95_s: grownQuantile(0.95, growths, SECONDS, of("queue")),
    };
  });
}
