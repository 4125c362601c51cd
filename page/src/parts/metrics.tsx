// The nine metrics by epoch, with the model before training as a dashed line.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { captionsOf, evaluationsByPlace, metricName, METRICS, mostOf, summaryOf } from "../curves";
import { capital, change, fixed, number, words } from "../format";
import { type Epoch, evaluationsOf, hasEnded, type RunRecord } from "../records";
import { Card, Code, Empty, Loading, Table } from "./basics";
import { CaptionChoice } from "./caption";
import { Chart, type Curve } from "./chart";

const HOW_TO = `from finetuner.callback import EvaluationCallback

finetuner.fit(…, callbacks=[EvaluationCallback(hold_out=0.2)])`;

interface MetricsProps {
  run: RunRecord;
  epochs: Epoch[];
  isThere: boolean;
  /** Batches of an epoch, once known. */
  n_steps?: number;
}

interface MetricChoice {
  /** Of the evaluation. */
  caption: string;
  /** Empty for all of them. */
  metric: string;
  /** Where both are chosen. */
  fields: ComponentChildren;
}

/** @param offersAll Whether all metrics may be shown at once. */
export function useMetricChoice(captions: string[], offersAll = false): MetricChoice {
  const [chosen, setChosen] = useState("");
  const [metric, setMetric] = useState<string>(METRICS[0]);
  const caption = captions.includes(chosen) ? chosen : captions[0] ?? "";
  const fields = (
    <>
      <CaptionChoice captions={captions} value={caption} onChange={setChosen} />
      <label class="inline">
        Curve of
        <select value={metric} onChange={(e) => setMetric(e.currentTarget.value)}>
          {offersAll && <option value="">all nine</option>}
          {METRICS.map((each) => <option value={each}>{words(each)}</option>)}
        </select>
      </label>
    </>
  );
  return { caption, metric, fields };
}

export function MetricsCard({ run, epochs, isThere, n_steps }: MetricsProps) {
  const captions = captionsOf(epochs);
  const { caption, metric, fields } = useMetricChoice(captions, true);
  if (!captions.length) return <Card title="Metrics">{isThere ? <None run={run} /> : <Loading what="Loading the metrics" />}</Card>;
  const chart = (each: string, isSmall = false) => (
    <MetricChart epochs={epochs} caption={caption} metric={each} n_steps={n_steps} isSmall={isSmall} />
  );
  return (
    <Card title="Metrics" actions={fields}>
      <div class={metric ? "beside" : "stack"}>
        {metric ? chart(metric) : (
          <div class="three">{METRICS.map((each) => <section><h3>{capital(words(each))}</h3>{chart(each, true)}</section>)}</div>
        )}
        <div class="stack near">
          <MetricTable epochs={epochs} caption={caption} />
          <Limit run={run} />
        </div>
      </div>
    </Card>
  );
}

function Limit({ run }: { run: RunRecord }) {
  const limits = new Set(evaluationsOf(run).map(({ limit }) => limit));
  const [limit] = limits;
  if (limits.size !== 1 || limit === undefined) return null;
  return <small>k is {String(limit)}: so many results of a query are looked at.</small>;
}

function None({ run }: { run: RunRecord }) {
  const asked = evaluationsOf(run).length > 0;
  if (asked && !hasEnded(run.status)) return <Empty title="No evaluation yet"><p>The model is evaluated before training and after each epoch.</p></Empty>;
  if (asked) return <Empty title="It was not evaluated"><p>The run ended before its first evaluation.</p></Empty>;
  return (
    <Empty title="This run is not evaluated">
      <p>An evaluation keeps a share of the data and searches with it, before training and after each epoch:</p>
      <Code label="How to evaluate a run" text={HOW_TO} />
    </Empty>
  );
}

interface MetricChartProps {
  epochs: Epoch[];
  caption: string;
  metric: string;
  n_steps?: number;
  isSmall?: boolean;
}

function MetricChart({ epochs, caption, metric, n_steps, isSmall }: MetricChartProps) {
  const curves = metricCurves(epochs, metricName(caption, metric), n_steps);
  const height = isSmall ? 150 : metricHeight();
  return <Chart xLabel="epoch" yLabel={words(metric)} curves={curves} mostY={mostOf(metric)} countsX isPlain={isSmall} height={height} />;
}

/** Return how high a curve of a metric is: on a wide screen as high as the table beside it. */
export function metricHeight(): number {
  return matchMedia("(min-width: 1300px)").matches ? 340 : 240;
}

function metricCurves(epochs: Epoch[], name: string, n_steps: number | undefined): Curve[] {
  const found = evaluationsByPlace(epochs, n_steps);
  const x = found.map(([place]) => place);
  const tuned: Curve = { label: "tuned", x, y: found.map(([, epoch]) => epoch.metrics[name] ?? null), colour: 0, showsPoints: x.length < 40 };
  const { before } = summaryOf(epochs, name);
  if (before === null) return [tuned];
  const end = Math.max(1, x.at(-1) ?? 1);
  return [tuned, { label: "untuned", x: [0, end], y: [before, before], colour: 7, isDashed: true, showsPoints: false }];
}

function MetricTable({ epochs, caption }: { epochs: Epoch[]; caption: string }) {
  return (
    <Table caption="Metrics before, after and at their best">
      <thead>
        <tr>
          <th scope="col">Metric</th>
          {["Before", "After", "Change", "Best", "in\u00a0epoch"].map((name) => <th scope="col" class="number">{name}</th>)}
        </tr>
      </thead>
      <tbody>
        {METRICS.map((metric) => {
          const { before, best, best_epoch, after } = summaryOf(epochs, metricName(caption, metric));
          return (
            <tr>
              <th scope="row">{words(metric)}</th>
              <td class="number">{fixed(before)}</td>
              <td class="number">{fixed(after)}</td>
              <Change before={before} after={after} />
              <td class="number">{fixed(best)}</td>
              <td class="number">{number(best_epoch)}</td>
            </tr>
          );
        })}
      </tbody>
    </Table>
  );
}

function Change({ before, after }: { before: number | null; after: number | null }) {
  if (before === null || after === null) return <td class="number">–</td>;
  const shown = change(before, after);
  const tone = Number(shown.slice(1)) ? (after > before ? "up" : "down") : "quiet";
  return <td class={`number ${tone}`}>{shown}</td>;
}
