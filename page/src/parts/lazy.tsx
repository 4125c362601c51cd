// A part of the page that is loaded when it is first opened.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ErrorNote, Loading } from "./basics";

export type Load<P> = () => Promise<ComponentType<P>>;

const loaded = new Map<unknown, unknown>();

/** @param load The same function each time, or the part would begin anew. */
export function Lazy<P extends object>({ load, props }: { load: Load<P>; props: P }) {
  const [, setCome] = useState<Load<P> | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    setError(null);
    if (loaded.has(load)) return;
    load()
      .then((part) => (loaded.set(load, part), setCome(() => load)))
      .catch(() => setError(new Error("This part of the page did not come. Is the service there?")));
  }, [load]);
  if (error) return <ErrorNote error={error} onRetry={() => location.reload()} />;
  const Part = loaded.get(load) as ComponentType<P> | undefined;
  return Part ? <Part {...props} /> : <Loading />;
}
