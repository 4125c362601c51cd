// How a run is doing: its state, its curves, its metrics, its log and its settings.
import { useMemo, useState } from "preact/hooks";
import { adviceFor } from "../advice";
import { decimated, inOrder, smoothed, throughput } from "../curves";
import { ago, change, duration, number, percent } from "../format";
import { fromJson, useFollowed, useNewLines, usePolled } from "../live";
import { Card, Empty, ErrorNote, Loading, Note, ProgressBar } from "../parts/basics";
import { Chart } from "../parts/chart";
import { LogCard } from "../parts/log";
import { MetricsCard } from "../parts/metrics";
import { SettingsCard } from "../parts/settings_card";
import { type Epoch, hasEnded, runPath, type RunRecord, type Step } from "../records";

export function RunOverview({ run }: { run: RunRecord }) {
  const query = { experiment_name: run.experiment_name };
  const steps = useFollowed<Step>(
    runPath(run.name, "/steps"), query, { artifact_id: run.artifact_id, unit: "lines" }, fromJson<Step>,
  );
  // Not a stream: with the log's and the steps' one more would leave a second window without connections.
  const epochs = useNewLines<Epoch>(runPath(run.name, "/epochs"), query, run.artifact_id);
  return (
    <div class="stack">
      <StateCard run={run} />
      <StepCards run={run} steps={steps.items} isThere={steps.isThere} />
      {steps.error && <ErrorNote error={steps.error} />}
      <MetricsCard run={run} epochs={epochs.items} isThere={epochs.isThere} n_steps={steps.items.at(-1)?.n_steps} />
      <LogCard run={run} />
      <SettingsCard run={run} />
    </div>
  );
}

const WAITING: Partial<Record<RunRecord["status"], string>> = {
  CREATED: "It waits for its turn.",
  INTERRUPTED: "Its worker is gone; it goes on by itself from its last checkpoint, or from the beginning when there is none.",
};

function StateCard({ run }: { run: RunRecord }) {
  const waits = WAITING[run.status];
  // What a run waits for is told by this alone.
  const status = usePolled<{ details: string }>(
    waits ? runPath(run.name, "/status") : null, { experiment_name: run.experiment_name }, 3_000,
  );
  const { progress } = run;
  return (
    <Card title="State">
      <div class="stack">
        {run.status === "FAILED" ? <Failure run={run} /> : (
          <p aria-live="polite" dir="auto" class="long">{waits && `${waits} `}{status.value?.details ?? run.details}</p>
        )}
        {progress && !hasEnded(run.status) && <ProgressBar progress={progress} />}
        <dl class="figures">
          {progress && !hasEnded(run.status) && (
            <>
              <Figure name="Epoch" value={`${progress.epoch} of ${progress.n_epochs}`} />
              <Figure name="Step" value={`${number(progress.n_steps_done)} of ${number(progress.n_steps_total)}`} />
              <Figure name="Loss" value={number(progress.loss)} />
              <Figure name="Active" value={percent(progress.active)} />
              <Figure name="Texts a second" value={number(progress.texts_per_s, 1)} />
              <Figure name="Left" value={duration(progress.eta_s)} />
            </>
          )}
          {run.metric && (
            <Figure name={`Best ${run.metric.name.replaceAll("_", " ")}`}
              value={`${number(run.metric.best)} (${change(run.metric.before, run.metric.best)})`} />
          )}
          <Figure name="Created" value={ago(run.created_at)} time={run.created_at} />
          {run.changed_at && <Figure name="Last change" value={ago(run.changed_at)} time={run.changed_at} />}
          {run.n_starts !== undefined && <Figure name="Starts" value={String(run.n_starts)} />}
          {run.position ? <Figure name="Place in the queue" value={String(run.position)} /> : null}
        </dl>
        {run.description && <p class="quiet long" dir="auto">{run.description}</p>}
      </div>
    </Card>
  );
}

function Figure({ name, value, time }: { name: string; value: string; time?: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{time ? <time dateTime={time} title={new Date(time).toLocaleString()}>{value}</time> : value}</dd>
    </div>
  );
}

function Failure({ run }: { run: RunRecord }) {
  return (
    <Note tone="bad">
      <div class="stack tight">
        <p class="long" dir="auto"><strong>It failed.</strong> {run.details}</p>
        <p>{adviceFor(run.details)}</p>
        <p><a href="#log" onClick={(e) => (e.preventDefault(), document.getElementById("log")?.scrollIntoView())}>The log's last lines</a> say more.</p>
      </div>
    </Note>
  );
}

const N_POINTS = 1_600;
const SPANS = [1, 10, 50, 200];

function StepCards({ run, steps, isThere }: { run: RunRecord; steps: Step[]; isThere: boolean }) {
  const [span, setSpan] = useState(10);
  const curves = useMemo(() => stepCurves(inOrder(steps), span), [steps, span]);
  if (!steps.length) {
    return (
      <Card title="Loss">
        {isThere || !hasEnded(run.status)
          ? <Empty title={hasEnded(run.status) ? "It made no step" : "No step yet"}><p>The curves begin with the first batch.</p></Empty>
          : <Loading what="Loading the steps" />}
      </Card>
    );
  }
  const smoothing = (
    <label class="inline">
      Smoothed over
      <select value={span} onChange={(e) => setSpan(Number(e.currentTarget.value))}>
        {SPANS.map((n) => <option value={n}>{n === 1 ? "nothing" : `${n} steps`}</option>)}
      </select>
    </label>
  );
  return (
    <div class="two">
      <Card title="Loss" actions={smoothing}>
        <Chart xLabel="step" yLabel="Loss" curves={curves.loss} />
      </Card>
      <Card title="Active fraction">
        <Chart xLabel="step" yLabel="Active fraction" yRange={[0, 1]} digits={3} curves={curves.active} />
      </Card>
      {curves.rate.length > 0 && (
        <Card title="Throughput">
          <Chart xLabel="step" yLabel="Texts a second" digits={1} curves={curves.rate} />
        </Card>
      )}
      <Card title="Learning rate">
        <Chart xLabel="step" yLabel="Learning rate" digits={6} curves={curves.learning_rate} />
      </Card>
    </div>
  );
}

function stepCurves(steps: Step[], span: number) {
  const x = steps.map((step) => step.n_steps_done);
  const rate = throughput(steps, 20);
  return {
    loss: rawAndSmoothed(x, steps.map((step) => step.batch_loss), span, "loss of the batch", 0),
    active: rawAndSmoothed(x, steps.map((step) => step.active), span, "active share of the batch", 1),
    rate: rate.x.length ? [thinned("texts a second", rate.x, rate.y, 2)] : [],
    learning_rate: [thinned("learning rate", x, steps.map((step) => step.learning_rate), 5)],
  };
}

/** Return the raw curve, and the smoothed one over it. */
function rawAndSmoothed(x: number[], y: number[], span: number, label: string, colour: number) {
  const raw = { ...thinned(label, x, y, colour), isFaint: span > 1 };
  return span > 1 ? [raw, thinned("smoothed", x, smoothed(y, span), colour)] : [raw];
}

function thinned(label: string, x: number[], y: number[], colour: number) {
  const places = decimated(y, N_POINTS);
  return { label, x: places.map((place) => x[place]!), y: places.map((place) => y[place]!), colour, showsPoints: y.length < 3 || undefined };
}
