// What a finished run's verdicts rest on.
import { capital } from "../format";
import { usePolled } from "../live";
import { judgedChanges, over } from "../judged";
import { type Judgement, runPath, type RunRecord } from "../records";
import { OUTCOME } from "./basics";

function wordOf({ outcome }: Judgement, isFirst: boolean): string {
  const word = OUTCOME[outcome]?.word ?? outcome;
  return isFirst ? capital(word) : word;
}

/** Nothing before the run has ended, and of one that was not evaluated. */
export function Judgements({ run }: { run: RunRecord }) {
  const isJudged = run.status === "FINISHED" && Boolean(run.verdict);
  const metrics = usePolled<{ verdicts: Record<string, Judgement> }>(
    isJudged ? runPath(run.name, "/metrics") : null, { experiment_name: run.experiment_name }, 0,
  );
  const found = Object.entries(metrics.value?.verdicts ?? {});
  if (!found.length) return null;
  return (
    <div class="stack tight">
      {found.map(([caption, judgement]) => (
        <p class="long">
          <strong>{found.length > 1 && <><bdi>{caption}</bdi>: </>}{wordOf(judgement, found.length === 1)}{over(judgement)}</strong>
          {judgedChanges(judgement).map(({ name, figure, counts }, place) => (
            <>{place ? ", " : ": "}{name} {counts ? <strong>{figure}</strong> : figure}</>
          ))}.
        </p>
      ))}
      <small>Behind ± stands the standard error over the queries; a change counts when it is more than twice that.</small>
    </div>
  );
}
