// Where the reader is: kept in the address behind `#`, so that links and the back button work.
import { signal } from "@preact/signals";

export interface Route {
  /** Such as ["runs", "default", "my-run"]. */
  parts: string[];
  query: URLSearchParams;
}

function read(): Route {
  const [path = "", search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { parts: parts.length ? parts : ["runs"], query: new URLSearchParams(search) };
}

export const route = signal<Route>(read());
addEventListener("hashchange", () => (route.value = read()));

/** Return the address of a place in the page. */
export function to(parts: string[], query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

export function go(parts: string[], query: Record<string, string> = {}): void {
  location.hash = to(parts, query);
}
