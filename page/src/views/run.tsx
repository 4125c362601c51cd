// One run: its head with what can be done to it, and the tab that is open.
import { useEffect, useState } from "preact/hooks";
import { usePolled } from "../live";
import { Empty, ErrorNote, Loading, OutcomeBadge, StatusBadge } from "../parts/basics";
import { Lazy, type Load } from "../parts/lazy";
import { RunActions } from "../parts/run_actions";
import { hasEnded, runPath, type RunRecord } from "../records";
import { type Route, to } from "../route";
import { RunOverview } from "./run_overview";

const LAZY: Record<string, Load<{ run: RunRecord }>> = {
  changes: async () => (await import("./changes")).ChangesView,
  space: async () => (await import("./space")).SpaceView,
};
const NEAR_PERFECT = 0.99;
const TABS = [["", "Overview"], ["changes", "What changed"], ["space", "Space"]] as const;

export default function RunView({ route }: { route: Route }) {
  const [, experiment_name = "", name = "", tab = ""] = route.parts;
  const [isQuiet, setIsQuiet] = useState(false);
  const { value: run, error, refresh } = usePolled<RunRecord>(runPath(name), { experiment_name }, isQuiet ? 10_000 : 2_000);
  useEffect(() => setIsQuiet(run !== undefined && hasEnded(run.status)), [run?.status]);
  if (error?.status === 404) return <Missing name={name} experiment={experiment_name} wasThere={run !== undefined} />;
  return (
    <>
      <div class="title">
        <h1>
          <small class="block">
            <a href={to(["runs"])}>Runs</a> / <a href={to(["runs"], { experiment: experiment_name })}>{experiment_name}</a>
          </small>
          {name}
        </h1>
        {run && <span class="row" role="status"><StatusBadge status={run.status} />{run.verdict && <OutcomeBadge outcome={run.verdict} />}{run.metric && run.metric.before >= NEAR_PERFECT && <small>already near perfect here before training</small>}</span>}
        {run && <RunActions run={run} onChange={refresh} />}
      </div>
      {error && !error.isAway && <ErrorNote error={error} onRetry={refresh} />}
      <nav class="tabs" aria-label="Parts of the run">
        {TABS.map(([part, title]) => (
          <a href={to(["runs", experiment_name, name, ...(part ? [part] : [])])} aria-current={part === tab ? "page" : undefined}>{title}</a>
        ))}
      </nav>
      {!run && !error && <Loading what="Loading the run" />}
      {run && !tab && <RunOverview key={run.artifact_id} run={run} />}
      {run && tab && (LAZY[tab]
        ? <Lazy key={run.artifact_id + tab} load={LAZY[tab]} props={{ run }} />
        : <ErrorNote error={new Error("A run has no such part.")} />)}
    </>
  );
}

function Missing({ name, experiment, wasThere }: { name: string; experiment: string; wasThere: boolean }) {
  return (
    <Empty title={wasThere ? "This run has been deleted" : "There is no such run"}>
      <h1 class="unseen">{name}</h1>
      <p>The service has no run <bdi>{name}</bdi> in the experiment <bdi>{experiment}</bdi>{wasThere ? " any more" : ""}.</p>
      <a class="button" href={to(["runs"])}>All runs</a>
    </Empty>
  );
}
