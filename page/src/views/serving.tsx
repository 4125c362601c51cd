// Serving: the names that clients ask for, and how quickly and well they are answered.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { post, remove } from "../api";
import { ago, milliseconds, number, percent, plural, size } from "../format";
import { asApiError, usePolled } from "../live";
import { AliasDialog } from "../parts/alias_dialog";
import { Badge, Card, Confirm, Empty, ErrorNote, Figure, Loading, Note, Table } from "../parts/basics";
import { Chart, type Curve } from "../parts/chart";
import { withScope } from "../parts/stored_data";
import { gauge, reading } from "../prometheus";
import { type Alias, type Model, splitKey } from "../records";
import { to } from "../route";
import { type History, modelFigures, NO_HISTORY, type Place, withReading } from "../serving_figures";

const INTERVAL_MS = 2_000;
const N_CURVES = 8;
/** Kept while the page is open, so that the curves are there again when one comes back to them. */
const history = signal<History>(NO_HISTORY);

export default function Serving() {
  const figures = usePolled<string>("/metrics", {}, INTERVAL_MS, (answer) => answer.text());
  const models = usePolled<{ models: Model[] }>("/models", {}, 5_000);
  useEffect(() => {
    if (figures.value !== undefined) history.value = withReading(history.value, reading(figures.value, Date.now() / 1e3));
  }, [figures.value]);
  const known = models.value?.models ?? [];
  return (
    <>
      <div class="title"><h1>Serving</h1></div>
      <div class="stack">
        <Aliases models={known} />
        {figures.error && <ErrorNote error={withScope(figures.error, "read")} />}
        <Traffic history={history.value} />
        <Memory history={history.value} models={known} error={models.error} />
      </div>
    </>
  );
}

type Open = { what: "change" | "rollback" | "delete"; alias: Alias } | { what: "new" } | null;

function Aliases({ models }: { models: Model[] }) {
  const aliases = usePolled<{ items: Alias[] }>("/aliases", {}, 5_000);
  const whoami = usePolled<{ scopes: string[] }>("/whoami", {}, 0);
  const [open, setOpen] = useState<Open>(null);
  const [error, setError] = useState<Error | null>(null);
  const mayChange = !whoami.value || whoami.value.scopes.includes("admin");
  const act = async (request: Promise<unknown>) => {
    setError(null);
    await request.catch((thrown) => setError(withScope(asApiError(thrown), "admin")));
    aliases.refresh();
  };
  const items = aliases.value?.items;
  const path = (alias: Alias, more = "") => `/aliases/${encodeURIComponent(alias.name)}${more}`;
  return (
    <Card
      title="Aliases"
      actions={<button type="button" disabled={!mayChange || !models.length} onClick={() => setOpen({ what: "new" })}>New alias</button>}
    >
      <div class="stack near">
        {!mayChange && <Note><p>This token may look and not change anything here: that needs the scope admin.</p></Note>}
        {error && <ErrorNote error={error} />}
        {aliases.error && !items && <ErrorNote error={withScope(aliases.error, "read")} onRetry={aliases.refresh} />}
        {!items && !aliases.error && <Loading what="Looking for aliases" />}
        {items && !items.length && (
          <Empty title="No alias yet">
            <p>An alias such as prod is a name that clients ask for. It can point to another run from one moment to the next, without a restart.</p>
            {!models.length && <p>It needs a finished run first. <a href={to(["new"])}>Start one</a></p>}
          </Empty>
        )}
        {items && items.length > 0 && (
          <ul class="aliases">
            {items.map((alias) => <AliasRow key={alias.name} alias={alias} mayChange={mayChange} onOpen={(what) => setOpen({ what, alias })} />)}
          </ul>
        )}
      </div>
      {(open?.what === "new" || open?.what === "change") && (
        <AliasDialog alias={open.what === "change" ? open.alias : null} models={models} onDone={aliases.refresh} onClose={() => setOpen(null)} />
      )}
      {open?.what === "rollback" && (
        <Confirm title={`Roll back ${open.alias.name}?`} verb="Roll back" onYes={() => void act(post(path(open.alias, "/rollback")))} onClose={() => setOpen(null)}>
          <p>It goes back from <Run name={open.alias.target.run} /> to <Run name={open.alias.history.at(-1)!.run} />, at once and for all clients. A split or a shadow ends.</p>
        </Confirm>
      )}
      {open?.what === "delete" && (
        <Confirm title={`Delete ${open.alias.name}?`} verb="Delete" onYes={() => void act(remove(path(open.alias)))} onClose={() => setOpen(null)}>
          <p>Clients that ask for <bdi class="name">{open.alias.name}</bdi> get an error from then on. The runs stay.</p>
        </Confirm>
      )}
    </Card>
  );
}

function Run({ name }: { name: string }) {
  const { experiment_name, name: run } = splitKey(name);
  return <a class="name" href={to(["runs", experiment_name, run])}><bdi>{name}</bdi></a>;
}

function AliasRow({ alias, mayChange, onOpen }: { alias: Alias; mayChange: boolean; onOpen: (what: "change" | "rollback" | "delete") => void }) {
  const button = (what: "change" | "rollback" | "delete", words: string, more: { disabled?: boolean } = {}) => (
    <button type="button" class="small" disabled={!mayChange || more.disabled} onClick={() => onOpen(what)}>
      {words}<span class="unseen"> {alias.name}</span>
    </button>
  );
  return (
    <li>
      <div class="row spread">
        <h3><bdi>{alias.name}</bdi></h3>
        <div class="actions">
          {button("change", "Change …")}
          {button("rollback", "Roll back …", { disabled: !alias.history.length })}
          {button("delete", "Delete …")}
        </div>
      </div>
      <ul class="shares">
        {alias.shares.map(({ run, weight }) => (
          <li>
            <span class="share" aria-hidden="true"><i style={{ width: `${100 * weight}%` }} /></span>
            <span class="number">{percent(weight)}</span>
            <span><Run name={run} /> {alias.missing.includes(run) && <Badge tone="bad">deleted</Badge>}</span>
          </li>
        ))}
        {alias.shadow && (
          <li>
            <span /><span class="quiet">shadow</span>
            <span><Run name={alias.shadow.run} /> {alias.missing.includes(alias.shadow.run) && <Badge tone="bad">deleted</Badge>}</span>
          </li>
        )}
      </ul>
      {alias.missing.length > 0 && <Note tone="bad"><p>It points to what was deleted: requests for it fail. Change it, or roll it back.</p></Note>}
      <small>
        changed {ago(alias.changed_at)}
        {alias.history.length > 0 && <>, before: <bdi class="text">{[...alias.history].reverse().slice(0, 3).map(({ run }) => run).join(", ")}</bdi></>}
      </small>
    </li>
  );
}

function Traffic({ history }: { history: History }) {
  const { places } = history;
  if (!places.length) return <Card title="Traffic"><Loading what="Counting" /></Card>;
  const models = modelFigures(history).filter(({ requests_per_s }) => requests_per_s > 0);
  const hasCurves = places.some(({ p50_s, queue_tokens, rates }) => p50_s !== null || queue_tokens || Object.values(rates).some(Boolean));
  return (
    <>
      <Card title="Traffic, the last minute">
        {models.length ? (
          <div class="stack near">
            <ModelTable models={models} />
            <small>p50: half of the requests took no longer; p95: 95 of 100.</small>
          </div>
        ) : (
          <Empty title={hasCurves ? "Nobody asked in the last minute" : "Nobody has asked for anything"}>
            <p>
              When clients ask <code>POST /encode</code>, their models stand here
              {hasCurves ? "." : ", and curves of requests, latency and queue below. What is counted begins when this page is opened."} What is asked at Try it is not counted here; its texts are among the tokens that wait.
            </p>
          </Empty>
        )}
      </Card>
      {hasCurves && <Curves places={places} />}
    </>
  );
}

function Curves({ places }: { places: Place[] }) {
  const names = [...new Set(places.flatMap(({ rates }) => Object.keys(rates)))].filter((name) => places.some(({ rates }) => rates[name])).sort();
  const now = places.at(-1)!.at_s;
  const x = places.map(({ at_s }) => Math.round((100 * (at_s - now)) / 60) / 100);
  const curve = (label: string, value: (place: Place) => number | null, colour: number): Curve => ({ label, x, y: places.map(value), colour });
  const inMs = (seconds: number | null) => (seconds === null ? null : 1e3 * seconds);
  const chart = (title: string, yLabel: string, leastY: number, curves: Curve[]) => (
    <Card title={title}>
      {curves.some(({ y }) => y.some((value) => value !== null))
        ? <Chart curves={curves} xLabel="minutes" yLabel={yLabel} digits={1} height={170} leastX={1} leastY={leastY} />
        : <Empty title="No client has asked yet" />}
    </Card>
  );
  return (
    <div class="three">
      {chart("Requests a second", "requests a second", 1, names.slice(0, N_CURVES).map((name, place) => curve(wordsOf(name), ({ rates }) => rates[name] ?? 0, place)))}
      {chart("Latency over HTTP, ms", "milliseconds", 10, [curve("p50", ({ p50_s }) => inMs(p50_s), 0), curve("p95", ({ p95_s }) => inMs(p95_s), 1)])}
      {chart("Tokens that wait, Try it among them", "tokens that wait", 10, [curve("tokens", ({ queue_tokens }) => queue_tokens, 2)])}
    </div>
  );
}

function wordsOf(artifact: string): string {
  return artifact || "no model found";
}

function ModelTable({ models }: { models: ReturnType<typeof modelFigures> }) {
  return (
    <Table caption="Models that were asked in the last minute">
      <thead>
        <tr>
          <th scope="col">model</th>
          <th scope="col" class="number">requests a second</th>
          <th scope="col" class="number">computing, p50</th>
          <th scope="col" class="number">computing, p95</th>
          <th scope="col" class="number">waiting, p95</th>
          <th scope="col" class="number">errors</th>
        </tr>
      </thead>
      <tbody>
        {models.map((model) => (
          <tr>
            <th scope="row" class="text"><bdi>{wordsOf(model.artifact)}</bdi></th>
            <td class="number">{model.requests_per_s.toFixed(1)}</td>
            <td class="number">{milliseconds(model.p50_s)}</td>
            <td class="number">{milliseconds(model.p95_s)}</td>
            <td class="number">{milliseconds(model.waiting_p95_s)}</td>
            <td class="number">
              {model.n_failed ? (
                <Badge tone="bad">{Object.entries(model.errors).map(([kind, n]) => `${number(n)} ${kind}`).join(", ")}</Badge>
              ) : "none"}
            </td>
          </tr>
        ))}
      </tbody>
    </Table>
  );
}

function Memory({ history: { last }, models, error }: { history: History; models: Model[]; error?: Error }) {
  const loaded = models.filter(({ kind, is_loaded }) => kind === "run" && is_loaded);
  const [n, bytes] = last ? [gauge(last, "finetuner_loaded_models"), gauge(last, "finetuner_loaded_bytes")] : [null, null];
  return (
    <Card title="Loaded models">
      <div class="stack near">
        {error && !models.length && <ErrorNote error={withScope(error, "encode or read")} />}
        <dl class="figures">
          <Figure name="in memory">{n === null ? "–" : plural(n, "model")}</Figure>
          <Figure name="their files">{bytes === null ? "–" : size(bytes)}</Figure>
        </dl>
        {loaded.length > 0 && (
          <ul class="plain-list">
            {loaded.map(({ id, dim }) => <li><bdi class="name">{id}</bdi> <small>{dim} dimensions</small></li>)}
          </ul>
        )}
        {loaded.length > 0 && n !== null && n > loaded.length && <small>The number above counts second copies too, and models from before training that Try it has loaded.</small>}
        {!loaded.length && <p class="quiet">A model is loaded when it is first asked for, and before an alias points to it.</p>}
      </div>
    </Card>
  );
}
