// Several runs beside each other: curves, metrics, and the settings that differ.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { captionsOf, evaluationsByPlace, inOrder, metricName, METRICS, mostOf, smoothed, spansFor, summaryOf, thinned } from "../curves";
import { fixed, words } from "../format";
import { fromJson, useFollowed, useNewLines, usePolled } from "../live";
import { Card, Empty, ErrorNote, Loading, OutcomeBadge, StatusBadge, Table } from "../parts/basics";
import { Chart, type Curve } from "../parts/chart";
import { metricHeight, useMetricChoice } from "../parts/metrics";
import { SettingName } from "../parts/settings_card";
import { SmoothingChoice } from "../parts/smoothing";
import { type Epoch, hasEnded, runPath, type RunRecord, splitKey, type Step } from "../records";
import { type Route, to } from "../route";
import { compared, written } from "../settings";

/** What has come of a run so far. */
interface Loaded {
  run?: RunRecord;
  error?: Error;
  steps: Step[];
  epochs: Epoch[];
}

type Come = (key: string, loaded: Loaded) => void;

export default function Compare({ route }: { route: Route }) {
  const keys = [...new Set((route.query.get("runs") ?? "").split(",").filter((key) => key.indexOf("/") > 0))];
  const loaded = useSignal<Record<string, Loaded>>({});
  const onCome: Come = (key, each) => (loaded.value = { ...loaded.value, [key]: each });
  return (
    <>
      <div class="title">
        <h1>Compare runs</h1>
        <div class="actions"><a class="button" href={to(["runs"])}>Choose others</a></div>
      </div>
      {keys.map((key) => <Source key={key} name={key} onCome={onCome} />)}
      {keys.length < 2
        ? <Empty title="Nothing to compare yet"><p>Mark two runs or more in the list, then choose Compare.</p><a class="button primary" href={to(["runs"])}>To the list</a></Empty>
        : <Beside keys={keys} loaded={loaded.value} />}
    </>
  );
}

/** Asks for what a run has; shows nothing. */
function Source({ name, onCome }: { name: string; onCome: Come }) {
  const { experiment_name, name: run_name } = splitKey(name);
  const query = { experiment_name };
  const [hasAllOf, setHasAllOf] = useState("");
  const { value: run, error } = usePolled<RunRecord>(runPath(run_name), query, hasAllOf ? 0 : 3_000);
  const artifact_id = run?.artifact_id ?? "";
  const path = (view: string) => (run ? runPath(run_name, view) : null);
  // Of a run that had ended, a stream gives all steps at once and ends; one that goes on would hold a connection.
  const streams = useRef<boolean | null>(null);
  if (run) streams.current ??= hasEnded(run.status);
  const streamed = useFollowed<Step>(streams.current ? path("/steps") : null, query, { artifact_id, unit: "lines" }, fromJson<Step>);
  const asked = useNewLines<Step>(streams.current === false ? path("/steps") : null, query, artifact_id);
  const steps = streams.current ? streamed : asked;
  const epochs = useNewLines<Epoch>(path("/epochs"), query, artifact_id);
  useEffect(() => {
    if (run && hasEnded(run.status)) setHasAllOf(run.artifact_id);
    onCome(name, { run, error: error && !error.isAway ? error : undefined, steps: steps.items, epochs: epochs.items });
  }, [run, error, steps.items, epochs.items]);
  return null;
}

function Beside({ keys, loaded }: { keys: string[]; loaded: Record<string, Loaded> }) {
  const [span, setSpan] = useState(50);
  const all = keys.map((key) => loaded[key] ?? { steps: [], epochs: [] });
  return (
    <div class="stack">
      <Heads keys={keys} all={all} />
      <StepCurves keys={keys} all={all} wanted={span} onSpan={setSpan} />
      <Metrics keys={keys} all={all} />
      <SettingsTable keys={keys} all={all} />
    </div>
  );
}

interface Several {
  keys: string[];
  all: Loaded[];
}

function Heads({ keys, all }: Several) {
  return (
    <Card title="Runs">
      <ul class="heads">
        {keys.map((key, place) => {
          const { run, error } = all[place]!;
          const { experiment_name, name } = splitKey(key);
          const rest = keys.filter((other) => other !== key);
          return (
            <li>
              <span class={`swatch series-${(place % 8) + 1}`} aria-hidden="true" />
              <span class="row">
                <a class="long" href={to(["runs", experiment_name, name])}>{key}</a>
                {run && <StatusBadge status={run.status} />}
                {run?.verdict && <OutcomeBadge outcome={run.verdict} />}
                {!run && !error && <span class="quiet">loading …</span>}
              </span>
              <a class="leave" href={to(["compare"], { runs: rest.join(",") })} aria-label={`Leave out ${key}`}>✕</a>
              {error && <ErrorNote error={error} />}
            </li>
          );
        })}
      </ul>
    </Card>
  );
}

/** Return the runs' names, without their experiment where they share it. */
function shortNames(keys: string[]): string[] {
  const split = keys.map(splitKey);
  const isShared = new Set(split.map(({ experiment_name }) => experiment_name)).size === 1;
  return isShared ? split.map(({ name }) => name) : keys;
}

const N_POINTS = 1_000;

function StepCurves({ keys, all, wanted, onSpan }: Several & { wanted: number; onSpan: (span: number) => void }) {
  const names = shortNames(keys);
  const steps = all.map((each) => each.steps);
  const n_steps = Math.max(...steps.map((each) => each.length));
  const span = Math.min(wanted, spansFor(n_steps).at(-1)!);
  const [loss, active] = useMemo(() => {
    const ordered = steps.map(inOrder);
    const curves = (value: (step: Step) => number) => ordered.map((each, place) => stepCurve(names[place]!, each, value, span, place));
    return [curves((step) => step.batch_loss), curves((step) => step.active)] as const;
  }, [...steps, span, keys.join()]);
  if (steps.every((each) => !each.length)) return <Card title="Loss">{all.every((each) => each.run || each.error) ? <Empty title="No step yet" /> : <Loading />}</Card>;
  return (
    <div class="two">
      <Card title="Loss" actions={<SmoothingChoice value={span} n_steps={n_steps} onChange={onSpan} />}><Chart xLabel="step" yLabel="Loss" curves={loss} /></Card>
      <Card title="Active fraction"><Chart xLabel="step" yLabel="Active fraction" yRange={[0, 1]} digits={3} curves={active} /></Card>
    </div>
  );
}

function stepCurve(label: string, steps: Step[], value: (step: Step) => number, span: number, colour: number): Curve {
  return { label, ...thinned(steps.map((step) => step.n_steps_done), smoothed(steps.map(value), span), N_POINTS), colour };
}

function Metrics({ keys, all }: Several) {
  const captions = [...new Set(all.flatMap((each) => captionsOf(each.epochs)))];
  const { caption, metric, fields } = useMetricChoice(captions);
  const names = shortNames(keys);
  const name = metricName(caption, metric);
  const curves = useMemo(() => all.map(({ epochs, steps }, place) => {
    const found = evaluationsByPlace(epochs, steps.at(-1)?.n_steps);
    return { label: names[place]!, x: found.map(([at]) => at), y: found.map(([, each]) => each.metrics[name] ?? null), colour: place, showsPoints: found.length < 40 };
  }), [...all.map((each) => each.epochs), name, keys.join()]);
  if (!captions.length) return <Card title="Metrics"><Empty title="None of these runs has been evaluated yet" /></Card>;
  return (
    <Card title="Metrics" actions={fields}>
      <div class={keys.length === 2 ? "beside" : "stack"}>
        <Chart xLabel="epoch" yLabel={words(metric)} curves={curves} mostY={mostOf(metric)} countsX height={metricHeight()} />
        <div class="stack near">
          <MetricTable keys={keys} all={all} caption={caption} />
          <small>★ marks the best of a row. Runs that were evaluated with different data cannot be compared by these figures.</small>
        </div>
      </div>
    </Card>
  );
}

function MetricTable({ keys, all, caption }: Several & { caption: string }) {
  const names = shortNames(keys);
  return (
    <Table caption="Metrics of each run before, at their best and after" class="of-runs">
      <thead role="rowgroup">
        <tr role="row">
          <th role="columnheader" scope="col" rowSpan={2}>Metric</th>
          {names.map((name) => <th role="columnheader" scope="colgroup" colSpan={3} class="run-column"><span class="clipped">{name}</span></th>)}
        </tr>
        <tr role="row">
          {keys.map(() => ["before", "best", "after"].map((name, place) => <th role="columnheader" scope="col" class={place ? "number" : "number run-column"}>{name}</th>))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {METRICS.map((metric) => {
          const found = all.map((each) => summaryOf(each.epochs, metricName(caption, metric)));
          const top = Math.max(...found.map(({ best }) => best ?? -Infinity));
          return (
            <tr role="row">
              <th role="rowheader" scope="row">{words(metric)}</th>
              {found.map(({ before, best, after }, place) => (
                <>
                  <td role="cell" class="number run-column" data-run={names[place]}>{fixed(before)}</td>
                  <td role="cell" class="number">
                    {best !== null && best === top
                      ? <strong class="figure">★ {fixed(best)}<span class="unseen"> the best</span></strong>
                      : fixed(best)}
                  </td>
                  <td role="cell" class="number">{fixed(after)}</td>
                </>
              ))}
            </tr>
          );
        })}
      </tbody>
    </Table>
  );
}

function SettingsTable({ keys, all }: Several) {
  const [showsAll, setShowsAll] = useState(false);
  const names = shortNames(keys);
  const known = all.flatMap(({ run }, place) => (run ? [{ name: names[place]!, config: run.config }] : []));
  const rows = compared(known.map(({ config }) => config));
  const shown = rows.filter((row) => showsAll || row.differs);
  const choice = (
    <label class="inline">
      <input type="checkbox" checked={showsAll} onChange={(e) => setShowsAll(e.currentTarget.checked)} />
      Show all {rows.length}
    </label>
  );
  return (
    <Card title={showsAll ? "Settings" : "Settings that differ"} actions={choice}>
      {!shown.length && <Empty title={known.length < 2 ? "There are not two runs to compare" : "Their settings are the same"} />}
      {shown.length > 0 && (
        <Table caption="Settings of each run">
          <thead>
            <tr><th scope="col">Setting</th>{known.map(({ name }) => <th scope="col"><span class="clipped">{name}</span></th>)}</tr>
          </thead>
          <tbody>
            {shown.map(({ name, values, differs }) => (
              <tr>
                <th scope="row" class="setting"><SettingName name={name} />{differs && showsAll && <> <span aria-hidden="true">≠</span><span class="unseen"> differs</span></>}</th>
                {values.map((value) => <td class="compared"><code dir="auto">{written(value)}</code></td>)}
              </tr>
            ))}
          </tbody>
        </Table>
      )}
    </Card>
  );
}
