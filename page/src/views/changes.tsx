// The results of a run's example queries, before fine-tuning and after.
import { useMemo, useRef, useState } from "preact/hooks";
import { plural } from "../format";
import { usePolled } from "../live";
import { Card, Code, Empty, ErrorNote, Loading } from "../parts/basics";
import { CaptionChoice } from "../parts/caption";
import { Text } from "../parts/text";
import { type Changed, changesOf, climb, firstOrder, nHits, type Ranked, wayOf } from "../ranks";
import { type Examples, hasEnded, runPath, type RunRecord } from "../records";

const HOW_TO = `from finetuner.callback import EvaluationCallback

finetuner.fit(…, callbacks=[
    EvaluationCallback(hold_out=0.2, gather_examples=True, num_example_queries=50)
])`;

const ORDERS = {
  gained: { word: "most gained", compare: (a: Changed, b: Changed) => b.gain - a.gain },
  lost: { word: "most lost", compare: (a: Changed, b: Changed) => a.gain - b.gain },
  given: { word: "as they came", compare: () => 0 },
};
type Order = keyof typeof ORDERS;

export function ChangesView({ run }: { run: RunRecord }) {
  const isFinished = run.status === "FINISHED";
  const { value, error, refresh } = usePolled<Examples>(
    isFinished ? runPath(run.name, "/examples") : null, { experiment_name: run.experiment_name }, 0,
  );
  const changes = useMemo(() => (value ? changesOf(value) : {}), [value]);
  if (!isFinished) return <NotFinished run={run} />;
  if (!value) return error && !error.isAway ? <ErrorNote error={error} onRetry={refresh} /> : <Loading what="Loading the examples" />;
  if (!Object.keys(changes).length) return <NoExamples />;
  return <Queries byCaption={changes} />;
}

function NotFinished({ run }: { run: RunRecord }) {
  return (
    <Card>
      {hasEnded(run.status)
        ? <Empty title="There is nothing to compare"><p>The run did not finish, so there are no results after fine-tuning.</p></Empty>
        : <Empty title="Not yet"><p>The results are compared when the run has finished. They appear here by themselves.</p></Empty>}
    </Card>
  );
}

function NoExamples() {
  return (
    <Card>
      <Empty title="This run kept no examples">
        <p>An evaluation keeps the results of some queries when it is asked to:</p>
        <Code label="How to keep examples" text={HOW_TO} />
      </Empty>
    </Card>
  );
}

const N_AT_FIRST = 20;
const N_OPEN = 2;
const TOP = [5, 10, 20];

function Queries({ byCaption }: { byCaption: Record<string, Changed[]> }) {
  const captions = Object.keys(byCaption);
  const [caption, setCaption] = useState(captions[0]!);
  const [chosenOrder, setOrder] = useState<Order | null>(null);
  const [searched, setSearched] = useState("");
  const [limit, setLimit] = useState(TOP[0]!);
  const [n_shown, setNShown] = useState(N_AT_FIRST);
  const all = byCaption[caption] ?? byCaption[captions[0]!]!;
  const order = chosenOrder ?? firstOrder(all);
  const found = useMemo(() => {
    const words = searched.toLowerCase().split(/\s+/);
    const fits = ({ query, label }: Changed) => words.every((word) => `${query} ${label}`.toLowerCase().includes(word));
    return all.filter(fits).sort(ORDERS[order].compare);
  }, [all, order, searched]);
  const list = useRef<HTMLDivElement>(null);
  const openAll = (isOpen: boolean) => list.current!.querySelectorAll("details").forEach((each) => (each.open = isOpen));
  const actions = (
    <>
      <button type="button" class="small" onClick={() => openAll(true)}>Open all</button>
      <button type="button" class="small" onClick={() => openAll(false)}>Close all</button>
    </>
  );
  return (
    <div class="stack">
      <Card title="Example queries" actions={actions}>
        <div class="filters">
          <CaptionChoice captions={captions} value={caption} onChange={setCaption} isAbove />
          <label>
            Order
            <select value={order} onChange={(e) => setOrder(e.currentTarget.value as Order)}>
              {Object.entries(ORDERS).map(([name, { word }]) => <option value={name}>{word}</option>)}
            </select>
          </label>
          <label>
            Results
            <select value={limit} onChange={(e) => setLimit(Number(e.currentTarget.value))}>
              {TOP.map((n) => <option value={n}>the first {n}</option>)}
            </select>
          </label>
          <label class="widest">
            Search in queries
            <input type="search" value={searched} onInput={(e) => setSearched(e.currentTarget.value)} />
          </label>
        </div>
        <p class="quiet" role="status">{verdictOf(found, all.length)}</p>
        <p class="quiet"><small>✓ marks a hit: a result with the query's label. A query has gained when its hits came in or went up, anywhere among its results. An arrow says how far a result came up or went down, the number behind it is its distance to the query.</small></p>
      </Card>
      <div class="stack near" ref={list}>
        {found.slice(0, n_shown).map((change, place) => (
          <Query key={`${caption} ${change.label} ${change.query}`} change={change} limit={limit} isOpen={place < N_OPEN} />
        ))}
      </div>
      {!found.length && <Empty title="No query has these words"><button type="button" onClick={() => setSearched("")}>Show all</button></Empty>}
      {found.length > n_shown && (
        <button type="button" onClick={() => setNShown(n_shown + N_AT_FIRST)}>Show more ({found.length - n_shown} left)</button>
      )}
    </div>
  );
}

function verdictOf(found: Changed[], n_all: number): string {
  const of = found.length < n_all ? ` of ${n_all}` : "";
  const n = (way: ReturnType<typeof wayOf>) => found.filter((change) => wayOf(change) === way).length;
  return `${plural(found.length, "query", "queries")}${of}: ${n("gained")} gained, ${n("lost")} lost, ${n("same")} as before.`;
}

/** One query; its results are folded away until they are asked for. */
function Query({ change, limit, isOpen }: { change: Changed; limit: number; isOpen: boolean }) {
  const before = nHits(change.before, limit), after = nHits(change.after, limit);
  return (
    <details class="card query" open={isOpen}>
      <summary>
        <h3 class="text clamp" dir="auto">{change.query || "(empty)"}</h3>
        {change.label !== null && <span class="label" dir="auto">{change.label}</span>}
        <span class="query-figures">
          <Shift name="First hit at" before={change.first.before} after={change.first.after} gain={rankGain(change)} />
          <Shift name={`Hits in the first ${limit}`} before={before} after={after} gain={after - before} />
        </span>
      </summary>
      <div class="sides">
        <Side title="Before" results={change.before} limit={limit} n_results={change.before.length} />
        <Side title="After" results={change.after} limit={limit} n_results={change.after.length} />
      </div>
    </details>
  );
}

function Shift({ name, before, after, gain }: { name: string; before: number | null; after: number | null; gain: number }) {
  return <span>{name} <strong class="figure">{before ?? "none"} → {after ?? "none"} <Way n={gain} /></strong></span>;
}

function rankGain({ first, before, after }: Changed): number {
  return (first.before ?? before.length + 1) - (first.after ?? after.length + 1);
}

function Way({ n }: { n: number }) {
  if (!n) return <span class="quiet">=<span class="unseen"> as before</span></span>;
  return n > 0
    ? <span class="up">▲<span class="unseen"> better</span></span>
    : <span class="down">▼<span class="unseen"> worse</span></span>;
}

interface SideProps {
  title: string;
  results: Ranked[];
  limit: number;
  n_results: number;
}

function Side({ title, results, limit, n_results }: SideProps) {
  return (
    <div>
      <h4>{title}</h4>
      <ol class="results">
        {results.slice(0, limit).map((result, place) => <Result result={result} place={place + 1} n_results={n_results} />)}
      </ol>
    </div>
  );
}

function Result({ result, place, n_results }: { result: Ranked; place: number; n_results: number }) {
  return (
    <li class={result.isHit ? "hit" : undefined}>
      <span class="result-mark">
        <span><span aria-hidden="true">{result.isHit && "✓"}</span><span class="unseen">{result.isHit ? "hit, " : "no hit, "}</span></span>
        <span>{place}</span>
      </span>
      <div class="result-text">
        <Text text={result.text} />
        <small class="row">
          {result.label !== null && <span class="label" dir="auto">{result.label}</span>}
          <Move result={result} n_results={n_results} />
          <span class="figure" title="distance to the query">{result.distance.toFixed(3)}</span>
        </small>
      </div>
    </li>
  );
}

function Move({ result, n_results }: { result: Ranked; n_results: number }) {
  const { before, after } = result;
  const n = climb(result, n_results);
  // That another text than a hit goes down is no loss.
  const tone = !result.isHit || !n ? "quiet" : n > 0 ? "up" : "down";
  return (
    <span class={`figure ${tone}`}>
      <span aria-hidden="true">{n > 0 ? "↑ " : n < 0 ? "↓ " : "= "}{before ?? "–"} → {after ?? "–"}</span>
      <span class="unseen">rank {before ?? `behind ${n_results}`} before, {after ?? `behind ${n_results}`} after</span>
    </span>
  );
}
