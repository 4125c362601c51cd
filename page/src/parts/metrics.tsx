// The nine metrics by epoch, with the model before training as a dashed line.
import { useState } from "preact/hooks";
import { captionsOf, evaluationsByPlace, metricName, METRICS, summaryOf } from "../curves";
import { change, number, words } from "../format";
import { type Epoch, hasEnded, type RunRecord } from "../records";
import { Card, Code, Empty, Loading, Table } from "./basics";
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

interface CaptionChoiceProps {
  captions: string[];
  value: string;
  onChange: (caption: string) => void;
}

/** Which of a run's evaluations is shown; nothing where there is one alone. */
export function CaptionChoice({ captions, value, onChange }: CaptionChoiceProps) {
  if (captions.length < 2) return null;
  return (
    <label class="inline">
      Evaluation
      <select value={value} onChange={(e) => onChange(e.currentTarget.value)}>
        {captions.map((each) => <option value={each}>{each || "without a caption"}</option>)}
      </select>
    </label>
  );
}

export function MetricsCard({ run, epochs, isThere, n_steps }: MetricsProps) {
  const captions = captionsOf(epochs);
  const [caption, setCaption] = useState("");
  const [metric, setMetric] = useState<string>("average_precision");
  const shown = captions.includes(caption) ? caption : captions[0] ?? "";
  if (!captions.length) return <Card title="Metrics">{isThere ? <None run={run} /> : <Loading what="Loading the metrics" />}</Card>;
  const choices = (
    <>
      <CaptionChoice captions={captions} value={shown} onChange={setCaption} />
      <label class="inline">
        Show
        <select value={metric} onChange={(e) => setMetric(e.currentTarget.value)}>
          <option value="">all nine</option>
          {METRICS.map((each) => <option value={each}>{words(each)}</option>)}
        </select>
      </label>
    </>
  );
  return (
    <Card title="Metrics" actions={choices}>
      <div class="stack">
        {metric
          ? <MetricChart epochs={epochs} name={metricName(shown, metric)} title={words(metric)} n_steps={n_steps} />
          : (
            <div class="three">
              {METRICS.map((each) => (
                <section>
                  <h3>{words(each)}</h3>
                  <MetricChart epochs={epochs} name={metricName(shown, each)} title={words(each)} n_steps={n_steps} isSmall />
                </section>
              ))}
            </div>
          )}
        <MetricTable epochs={epochs} caption={shown} />
      </div>
    </Card>
  );
}

function None({ run }: { run: RunRecord }) {
  const asked = JSON.stringify(run.config.callbacks ?? []).includes("EvaluationCallback");
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
  name: string;
  title: string;
  n_steps?: number;
  isSmall?: boolean;
}

function MetricChart({ epochs, name, title, n_steps, isSmall }: MetricChartProps) {
  return (
    <Chart xLabel="epoch" yLabel={title} curves={metricCurves(epochs, name, n_steps)} countsX isPlain={isSmall} height={isSmall ? 150 : 240} />
  );
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
    <Table caption="Metrics before, at their best and after">
      <thead>
        <tr>
          <th scope="col">Metric</th>
          {["Before", "Best", "of epoch", "After", "Change"].map((name) => <th scope="col" class="number">{name}</th>)}
        </tr>
      </thead>
      <tbody>
        {METRICS.map((metric) => {
          const { before, best, best_epoch, after } = summaryOf(epochs, metricName(caption, metric));
          return (
            <tr>
              <th scope="row">{words(metric)}</th>
              <td class="number">{number(before)}</td>
              <td class="number">{number(best)}</td>
              <td class="number">{number(best_epoch)}</td>
              <td class="number">{number(after)}</td>
              <td class="number">{before === null || after === null ? "–" : change(before, after)}</td>
            </tr>
          );
        })}
      </tbody>
    </Table>
  );
}
