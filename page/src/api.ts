// Asks the server, over the same routes as any client.
import { signal } from "@preact/signals";

const TOKEN_KEY = "finetuner-token";

/** What the server said when it refused or failed. */
export class ApiError extends Error {
  constructor(
    /** Of HTTP; 0 when no answer came. */
    readonly status: number,
    /** The server's name for the error, such as RunNotFoundError. */
    readonly kind: string,
    message: string,
  ) {
    super(message);
  }

  get isAway(): boolean {
    return this.status === 0 || this.status === 503;
  }

  get isStarting(): boolean {
    return this.kind === "StartingError";
  }
}

/** The token that requests carry; kept for this tab alone. */
export const token = signal(sessionStorage.getItem(TOKEN_KEY) ?? "");
/** Whether the server has asked for a token that we do not have. */
export const needsToken = signal(false);
/** Whether the last request got through to the server. */
export const isAway = signal(false);
/** What the server says of its start; empty when it does not start. */
export const starting = signal("");

export function setToken(value: string): void {
  token.value = value;
  if (value) sessionStorage.setItem(TOKEN_KEY, value);
  else sessionStorage.removeItem(TOKEN_KEY);
  needsToken.value = false;
}

export type Query = Record<string, string | number | boolean | undefined>;

export interface Request {
  query?: Query;
  /** Sent as JSON. */
  body?: unknown;
  /** Sent as it is, with its own type. */
  file?: Blob;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export function withQuery(path: string, query: Query = {}): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  return given.length ? `${path}?${search}` : path;
}

/** Send a request and return the answer, whatever its body; refusals are thrown. */
export async function send(method: string, path: string, request: Request = {}): Promise<Response> {
  const headers: Record<string, string> = { ...request.headers };
  if (token.value) headers.Authorization = `Bearer ${token.value}`;
  if (request.body !== undefined) headers["Content-Type"] = "application/json";
  if (request.file) headers["Content-Type"] = request.file.type;
  let response: Response;
  try {
    response = await fetch(withQuery(path, request.query), {
      method,
      headers,
      body: request.file ?? (request.body === undefined ? undefined : JSON.stringify(request.body)),
      signal: request.signal,
      cache: "no-store",
    });
  } catch (error) {
    if (request.signal?.aborted) throw error;
    isAway.value = true;
    starting.value = "";
    throw new ApiError(0, "Unreachable", "The server does not answer.");
  }
  if (!response.ok) throw await refusal(response);
  isAway.value = false;
  starting.value = "";
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  let kind = "", detail = text.slice(0, 500) || response.statusText;
  try {
    const content = JSON.parse(text);
    kind = String(content.error);
    detail = String(content.detail);
  } catch {
    // A proxy's answer is no JSON; its text is shown.
  }
  if (response.status === 401) needsToken.value = true;
  isAway.value = response.status === 503 || response.status === 502;
  const error = new ApiError(response.status, kind, detail);
  starting.value = error.isStarting ? detail : "";
  return error;
}

export async function get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
  return (await send("GET", path, { query, signal })).json();
}

export async function post<T>(path: string, body?: unknown, query: Query = {}): Promise<T> {
  return (await send("POST", path, { body, query })).json();
}

export async function put<T>(path: string, body: unknown, query: Query = {}): Promise<T> {
  const request = body instanceof Blob ? { file: body } : { body };
  return (await send("PUT", path, { ...request, query })).json();
}

export async function remove<T>(path: string, query: Query = {}): Promise<T> {
  return (await send("DELETE", path, { query })).json();
}

/** Save an answer as a file, with the token that a plain link would not carry. */
export async function download(path: string, query: Query, name: string): Promise<void> {
  const response = await send("GET", path, { query });
  const url = URL.createObjectURL(await response.blob());
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
