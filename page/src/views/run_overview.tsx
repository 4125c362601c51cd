// How a run is doing: its state, its curves, its metrics, its log and its settings.
import { useMemo, useState } from "preact/hooks";
import { adviceFor } from "../advice";
import { inOrder, smoothed, spansFor, thinned, throughput } from "../curves";
import { ago, capital, change, fixed, number, percent, words } from "../format";
import { fromJson, useFollowed, useNewLines, usePolled } from "../live";
import { Card, Empty, ErrorNote, Figure, Loading, Note, ProgressBar } from "../parts/basics";
import { Chart, type Curve } from "../parts/chart";
import { Judgements } from "../parts/judgements";
import { LogCard } from "../parts/log";
import { MetricsCard } from "../parts/metrics";
import { SettingsCard } from "../parts/settings_card";
import { SmoothingChoice } from "../parts/smoothing";
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
      <div class="log-and-settings">
        <LogCard run={run} />
        <SettingsCard run={run} />
      </div>
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
  const details = status.value?.details ?? run.details;
  return (
    <Card title="State">
      <div class="stack">
        {run.status === "FAILED" && <Failure run={run} />}
        {run.status !== "FAILED" && run.status !== "FINISHED" && (
          <p aria-live="polite" dir="auto" class="long">{waits && `${waits} `}{details}</p>
        )}
        {run.progress && !hasEnded(run.status) && <Progress progress={run.progress} details={details} />}
        {run.metric && <Metric metric={run.metric} />}
        <Judgements run={run} />
        {run.description && <p class="quiet long" dir="auto">{run.description}</p>}
        <Times run={run} />
      </div>
    </Card>
  );
}

function Progress({ progress, details }: { progress: NonNullable<RunRecord["progress"]>; details: string }) {
  return (
    <>
      <ProgressBar progress={progress} details={details} />
      <dl class="figures">
        <Figure name="Epoch">{progress.epoch} of {progress.n_epochs}</Figure>
        <Figure name="Step">{number(progress.n_steps_done)} of {number(progress.n_steps_total)}</Figure>
        <Figure name="Loss">{fixed(progress.loss)}</Figure>
        <Figure name="Active">{percent(progress.active)}</Figure>
        <Figure name="Texts a second">{fixed(progress.texts_per_s, 1)}</Figure>
      </dl>
    </>
  );
}

/** The metric that decides, as the model has it now; another epoch may have been better. */
function Metric({ metric: { name, before, after, best, best_epoch } }: { metric: NonNullable<RunRecord["metric"]> }) {
  return (
    <dl class="figures">
      <Figure name={capital(words(name))}>{fixed(after)}</Figure>
      <Figure name="Before training">{fixed(before)}</Figure>
      <Figure name="Change">{change(before, after)}</Figure>
      <Figure name={`Best, epoch ${number(best_epoch)}`}>{fixed(best)}</Figure>
    </dl>
  );
}

function Times({ run }: { run: RunRecord }) {
  const { n_starts = 1, position } = run;
  return (
    <p class="quiet">
      Created <Time at={run.created_at} />
      {run.changed_at && <>, last change <Time at={run.changed_at} /></>}
      {n_starts > 1 && `, started ${n_starts} times`}
      {position ? `, place ${position} in the queue` : ""}.
    </p>
  );
}

function Time({ at }: { at: string }) {
  return <time dateTime={at} title={new Date(at).toLocaleString()}>{ago(at)}</time>;
}

function Failure({ run }: { run: RunRecord }) {
  return (
    <Note tone="bad">
      <div class="stack tight">
        <p class="long" dir="auto"><strong>It failed.</strong> {run.details.replace(/[^.!?]$/, "$&.")}</p>
        <p>{adviceFor(run.details)}</p>
        <p><a href="#log" onClick={(e) => (e.preventDefault(), document.getElementById("log")?.scrollIntoView())}>The log's last lines</a> say more.</p>
      </div>
    </Note>
  );
}

const N_POINTS = 1_600;

function StepCards({ run, steps, isThere }: { run: RunRecord; steps: Step[]; isThere: boolean }) {
  const [wanted, setSpan] = useState(10);
  const span = Math.min(wanted, spansFor(steps.length).at(-1)!);
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
  return (
    <div class="curves">
      <Card title="Loss" actions={<SmoothingChoice value={span} n_steps={steps.length} onChange={setSpan} />}>
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
        <Chart xLabel="step" yLabel="Learning rate" curves={curves.learning_rate} />
      </Card>
    </div>
  );
}

function stepCurves(steps: Step[], span: number) {
  const x = steps.map((step) => step.n_steps_done);
  const rate = throughput(steps, 20);
  return {
    loss: rawAndSmoothed(x, steps.map((step) => step.batch_loss), span, 0),
    active: rawAndSmoothed(x, steps.map((step) => step.active), span, 1),
    rate: rate.x.length ? [curve("texts a second", rate.x, rate.y, 2)] : [],
    learning_rate: [curve("learning rate", x, steps.map((step) => step.learning_rate), 5)],
  };
}

/** Return the raw curve, and the smoothed one over it. */
function rawAndSmoothed(x: number[], y: number[], span: number, colour: number): Curve[] {
  const raw = { ...curve("batch", x, y, colour), isFaint: span > 1 };
  return span > 1 ? [raw, curve("smoothed", x, smoothed(y, span), colour)] : [raw];
}

function curve(label: string, x: number[], y: number[], colour: number): Curve {
  return { label, ...thinned(x, y, N_POINTS), colour, showsPoints: y.length < 3 || undefined };
}
