// All runs, the newest first, a page at a time; those that are chosen can be compared.
import { signal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { ago, change, fixed, plural, words } from "../format";
import { usePolled } from "../live";
import {
  Code, Empty, ErrorNote, Loading, OutcomeBadge, ProgressBar, StatusBadge,
} from "../parts/basics";
import { hasEnded, runKey, type RunPage, type RunRecord, type Status } from "../records";
import { go, type Route, to } from "../route";

const SIZE = 25;
const STATES: [string, Status[]][] = [
  ["waiting or running", ["CREATED", "STARTED", "INTERRUPTED"]],
  ["finished", ["FINISHED"]],
  ["failed", ["FAILED"]],
  ["cancelled", ["CANCELLED"]],
];

// They stay while a run is looked at.
const chosen = signal<string[]>([]);
const text = signal("");
const state = signal("");

export default function Runs({ route }: { route: Route }) {
  const experiment = route.query.get("experiment") ?? "";
  const page = Math.max(1, Math.floor(Number(route.query.get("page"))) || 1);
  const isBusy = useRef(true);
  const query = { order: "newest", page, size: SIZE, experiment_name: experiment || undefined };
  const runs = usePolled<RunPage>("/runs", query, isBusy.current ? 2_000 : 5_000);
  const last = useRef<RunPage | undefined>(undefined);
  if (runs.value) last.current = runs.value;
  // What was there stays until the next page has come.
  const shown = runs.value ?? last.current;
  isBusy.current = !shown || shown.items.some((run) => !hasEnded(run.status));
  return (
    <>
      <div class="title">
        <h1>Runs</h1>
        <div class="actions"><a class="button primary" href={to(["new"])}>New run</a></div>
      </div>
      {runs.error && !runs.error.isAway && <ErrorNote error={runs.error} onRetry={runs.refresh} />}
      {!shown && !runs.error && <Loading what="Loading the runs" />}
      {shown && (shown.total || experiment || page > 1
        ? <List shown={shown} experiment={experiment} page={page} isOld={!runs.value} />
        : <Beginning />)}
    </>
  );
}

interface ListProps {
  shown: RunPage;
  experiment: string;
  page: number;
  isOld: boolean;
}

function List({ shown, experiment, page, isOld }: ListProps) {
  const rows = shown.items.filter(isWanted);
  return (
    <section class="card" aria-labelledby="runs-shown">
      <h2 id="runs-shown" class="unseen">The runs that are shown</h2>
      <Filters experiment={experiment} />
      {rows.length > 0 && <RunTable runs={rows} isOld={isOld} />}
      {!rows.length && <NothingFound n_loaded={shown.items.length} page={page} experiment={experiment} />}
      <Pages total={shown.total} page={page} n_shown={rows.length} n_loaded={shown.items.length} experiment={experiment} />
      <Chosen />
    </section>
  );
}

function isWanted(run: RunRecord): boolean {
  const statuses = STATES.find(([name]) => name === state.value)?.[1];
  if (statuses && !statuses.includes(run.status)) return false;
  const searched = `${runKey(run)} ${run.description ?? ""} ${run.config.model} ${run.config.loss}`.toLowerCase();
  return text.value.toLowerCase().split(/\s+/).every((word) => searched.includes(word));
}

function Filters({ experiment }: { experiment: string }) {
  const { value } = usePolled<{ items: { name: string }[] }>("/experiments", {}, 30_000);
  const names = new Set([...(value?.items ?? []).map(({ name }) => name), ...(experiment ? [experiment] : [])]);
  return (
    <div class="filters">
      <label>
        Experiment
        <select value={experiment} onChange={(e) => go(["runs"], e.currentTarget.value ? { experiment: e.currentTarget.value } : {})}>
          <option value="">all</option>
          {[...names].map((name) => <option value={name}>{name}</option>)}
        </select>
      </label>
      <label>
        State
        <select value={state.value} onChange={(e) => (state.value = e.currentTarget.value)}>
          <option value="">any</option>
          {STATES.map(([name]) => <option value={name}>{name}</option>)}
        </select>
      </label>
      <label class="widest">
        Text
        <input type="search" placeholder="name, model, loss …" value={text.value} onInput={(e) => (text.value = e.currentTarget.value)} />
      </label>
    </div>
  );
}

function RunTable({ runs, isOld }: { runs: RunRecord[]; isOld: boolean }) {
  return (
    <div class="table-frame" tabIndex={0} role="region" aria-label="Runs" aria-busy={isOld}>
      <table role="table" class="runs">
        <caption class="unseen">Runs, the newest first</caption>
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader" scope="col"><span class="unseen">Compare</span></th>
            {["Run", "State", "Progress", "Best metric", "Verdict", "Begun"].map((name) => (
              <th role="columnheader" scope="col">{name}</th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">{runs.map((run) => <Row key={run.artifact_id} run={run} />)}</tbody>
      </table>
    </div>
  );
}

function Row({ run }: { run: RunRecord }) {
  const key = runKey(run);
  const isChosen = chosen.value.includes(key);
  const toggle = () => (chosen.value = isChosen ? chosen.value.filter((each) => each !== key) : [...chosen.value, key]);
  return (
    <tr role="row" data-chosen={isChosen}>
      <td role="cell" class="run-choice">
        <label class="target"><input type="checkbox" checked={isChosen} onChange={toggle} aria-label={`Compare ${key}`} /></label>
      </td>
      <th role="rowheader" scope="row" class="run-name">
        <a href={to(["runs", run.experiment_name, run.name])}>{run.name}</a>
        <small class="clipped"><bdi>{run.experiment_name} · {String(run.config.model)}</bdi></small>
        {run.description && <small class="clipped" dir="auto">{run.description}</small>}
      </th>
      <td role="cell" class="run-state"><StatusBadge status={run.status} /></td>
      <td role="cell" class="run-progress"><Progress run={run} /></td>
      <td role="cell" class={run.metric ? "run-metric" : "run-metric none"}><Best run={run} /></td>
      <td role="cell" class={run.verdict ? "run-verdict" : "run-verdict none"}><OutcomeBadge outcome={run.verdict} /></td>
      <td role="cell" class="run-when"><time dateTime={run.created_at} title={new Date(run.created_at).toLocaleString()}>{ago(run.created_at)}</time></td>
    </tr>
  );
}

function Progress({ run }: { run: RunRecord }) {
  const { progress } = run;
  if (progress && !hasEnded(run.status)) {
    return (
      <>
        <ProgressBar progress={progress} details={run.details} />
        <small class="block">epoch {progress.epoch} of {progress.n_epochs}</small>
      </>
    );
  }
  if (run.status === "CREATED" && run.position) return <small class="block">place {run.position} in the queue</small>;
  if (run.status === "FINISHED") return <small class="block">{plural(Number(run.config.epochs), "epoch")}</small>;
  return <small class="clamp two-lines" dir="auto" title={run.details}>{run.details}</small>;
}

function Best({ run }: { run: RunRecord }) {
  const { metric } = run;
  if (!metric) return <span class="quiet">–</span>;
  return (
    <>
      <strong class="figure">{fixed(metric.best)}</strong>{" "}
      <span class="figure quiet">{change(metric.before, metric.best)}</span>
      <small class="block">{words(metric.name)}</small>
    </>
  );
}

function NothingFound({ n_loaded, page, experiment }: { n_loaded: number; page: number; experiment: string }) {
  if (n_loaded) {
    const reset = () => ([text.value, state.value] = ["", ""]);
    return (
      <Empty title={`None of the ${plural(n_loaded, "run")} on this page fits`}>
        <button type="button" onClick={reset}>Show all of them</button>
      </Empty>
    );
  }
  if (page > 1) return <Empty title="There is no such page"><a href={to(["runs"])}>The newest runs</a></Empty>;
  return <Empty title={`No run in ${experiment} yet`}><a href={to(["new"])}>Start one</a></Empty>;
}

interface PagesProps {
  total: number;
  page: number;
  n_shown: number;
  n_loaded: number;
  experiment: string;
}

function Pages({ total, page, n_shown, n_loaded, experiment }: PagesProps) {
  const first = (page - 1) * SIZE + 1, n_pages = Math.max(1, Math.ceil(total / SIZE));
  const at = (n: number) => to(["runs"], { ...(experiment && { experiment }), ...(n > 1 && { page: String(n) }) });
  const link = (n: number, name: string) =>
    n >= 1 && n <= n_pages && n !== page
      ? <a class="button small" href={at(n)}>{name}</a>
      : <span class="button small" aria-disabled="true">{name}</span>;
  return (
    <nav class="pages" aria-label="Pages of runs">
      <p role="status" class="quiet">
        {n_loaded > 0 && `${first.toLocaleString("en")} to ${(first + n_loaded - 1).toLocaleString("en")} of `}
        {plural(total, "run")}{n_shown < n_loaded && `, ${n_shown} shown`}
      </p>
      {n_pages > 1 && (
        <div class="actions">{link(1, "Newest")}{link(page - 1, "Newer")}{link(page + 1, "Older")}{link(n_pages, "Oldest")}</div>
      )}
    </nav>
  );
}

function Chosen() {
  const n = chosen.value.length;
  return (
    <div class={n ? "chosen" : undefined} role="status">
      {n > 0 && (
        <>
          <span>{plural(n, "run")} chosen{n === 1 && "; choose another to compare"}</span>
          <div class="actions">
            <button type="button" onClick={() => (chosen.value = [])}>Clear</button>
            {n > 1 && <a class="button primary" href={to(["compare"], { runs: chosen.value.join(",") })}>Compare</a>}
          </div>
        </>
      )}
    </div>
  );
}

function Beginning() {
  const python = `# with FINETUNER_HOST=${location.origin} in the environment
import finetuner

finetuner.login()
run = finetuner.fit(model="all-minilm-l6-v2", train_data="train.csv", epochs=1)`;
  const body = '{"model": "all-minilm-l6-v2", "run_name": "first-run", "train_data": "train.csv"}';
  return (
    <section class="card stack" aria-labelledby="beginning">
      <Empty title="No run yet">
        <h2 id="beginning" class="unseen">How to start a run</h2>
        <p>A run fine-tunes a model on your labelled texts. Start one here, from Python, or from a shell.</p>
        <a class="button primary" href={to(["new"])}>Start a run</a>
      </Empty>
      <div class="two">
        <div class="stack"><h3>Python</h3><Code label="Python that starts a run" text={python} /></div>
        <div class="stack"><h3>Shell, with stored data</h3><Code label="Command that starts a run" text={`curl -d '${body}' ${location.origin}/fit`} /></div>
      </div>
    </section>
  );
}
