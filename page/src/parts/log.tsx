// A run's log, as it comes.
import { useEffect, useRef, useState } from "preact/hooks";
import { download } from "../api";
import { duration } from "../format";
import { asApiError, useFollowed } from "../live";
import { hasEnded, runPath, type RunRecord } from "../records";
import { Card, Empty, ErrorNote, Loading } from "./basics";

// The file may have more; it is what the download gives.
const N_LINES = 3_000;
const NEAR_END_PX = 24;

export function LogCard({ run }: { run: RunRecord }) {
  const path = runPath(run.name, "/logs"), query = { experiment_name: run.experiment_name };
  const { items, isThere, error } = useFollowed<string>(path, query, { artifact_id: run.artifact_id, unit: "bytes" }, (line) => line, N_LINES);
  const [wraps, setWraps] = useState(true);
  const [failed, setFailed] = useState<Error | null>(null);
  const save = () => {
    setFailed(null);
    download(path, query, `${run.name}.log.txt`).catch((thrown) => setFailed(asApiError(thrown)));
  };
  const actions = (
    <>
      <label class="inline"><input type="checkbox" checked={wraps} onChange={(e) => setWraps(e.currentTarget.checked)} />Wrap lines</label>
      <button type="button" class="small" onClick={save} disabled={!items.length}>Download</button>
    </>
  );
  return (
    <Card title="Log" actions={actions} id="log">
      {(failed ?? error) && <ErrorNote error={(failed ?? error)!} />}
      {items.length > 0 && <Lines lines={items} wraps={wraps} />}
      {!items.length && !error && (hasEnded(run.status)
        ? isThere ? <Empty title="It wrote nothing" /> : <Loading what="Loading the log" />
        : <NothingYet run={run} />)}
    </Card>
  );
}

function NothingYet({ run: { status, details, changed_at } }: { run: RunRecord }) {
  if (status !== "STARTED") return <Empty title="Nothing yet"><p>The log begins when a worker takes the run.</p></Empty>;
  const seconds = (Date.now() - Date.parse(changed_at ?? "")) / 1e3;
  return (
    <Empty title={`${details} …`}>
      <p>{Number.isFinite(seconds) && `For ${duration(seconds)} so far. `}The log begins when the model and its data are loaded.</p>
    </Empty>
  );
}

function Lines({ lines, wraps }: { lines: string[]; wraps: boolean }) {
  const frame = useRef<HTMLPreElement>(null);
  const [follows, setFollows] = useState(true);
  useEffect(() => {
    if (follows) frame.current!.scrollTop = frame.current!.scrollHeight;
  }, [lines, follows, wraps]);
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = frame.current!;
    setFollows(scrollHeight - scrollTop - clientHeight < NEAR_END_PX);
  };
  return (
    <div class="log">
      {lines.length === N_LINES && <p class="quiet"><small>The last {N_LINES.toLocaleString("en")} lines; the download has all.</small></p>}
      <pre ref={frame} class={wraps ? "wraps" : undefined} tabIndex={0} role="log" aria-label="Log of the run" aria-live="off" onScroll={onScroll}>{lines.join("\n")}</pre>
      {!follows && <button type="button" class="small" onClick={() => setFollows(true)}>To the end ↓</button>}
    </div>
  );
}
