// Try it: one query, the nearest texts of two models beside each other.
import { useEffect, useState } from "preact/hooks";
import { ApiError, post, token } from "../api";
import { milliseconds, number, plural } from "../format";
import { asApiError, usePolled } from "../live";
import { DATA, moves, newestSides, NOBODY, otherSide, runOf, searchedOf, type Side, sideName, sideOf } from "../moves";
import { Card, Empty, ErrorNote, Loading, Note } from "../parts/basics";
import { Field } from "../parts/field";
import { withScope } from "../parts/stored_data";
import { colourPlaces, countedLabels } from "../points";
import { type Hit, type Model, type RunRecord, runPath, type SearchAnswer, splitKey, type StoredData } from "../records";
import { go, type Route, to } from "../route";

const N_RESULTS = 10;
const PAUSE_MS = 1_000;

export default function TryIt({ route }: { route: Route }) {
  const models = usePolled<{ models: Model[] }>("/models", {}, 15_000);
  const known = models.value?.models;
  return (
    <>
      <div class="title"><h1>Try it</h1></div>
      {!known && models.error && <ErrorNote error={withScope(models.error, "encode or read")} onRetry={models.refresh} />}
      {!known && !models.error && <Loading what="Looking for models" />}
      {known && (newestSides(known) ? <Sides models={known} query={route.query} /> : (
        <Empty title="There is no model yet">
          <p>When a run has finished, its model can be asked here, beside the one it began with.</p>
          <a class="button primary" href={to(["new"])}>Start a run</a>
        </Empty>
      ))}
    </>
  );
}

function Sides({ models, query }: { models: Model[]; query: URLSearchParams }) {
  const stored = usePolled<{ items: StoredData[] }>("/data", {}, 30_000);
  const [newest, untuned] = newestSides(models)!;
  const a = query.has("a") ? sideOf(query.get("a")!) : newest;
  const chosen = query.get("b") ?? sideName(query.has("a") ? otherSide(a, models) : untuned);
  const b = chosen === NOBODY ? null : sideOf(chosen);
  const index = query.get("index") ?? "";
  const asked = query.get("q") ?? "";
  const [typed, setTyped] = useState(asked);
  useEffect(() => setTyped(asked), [asked]);
  const show = (changes: Record<string, string>) => {
    const all = { a: sideName(a), b: chosen, index, q: asked, ...changes };
    go(["try"], Object.fromEntries(Object.entries(all).filter(([, value]) => value)));
  };
  const own_run = runOf(a.artifact, models);
  const { experiment_name, name: run_name } = splitKey(own_run ?? "/");
  const record = usePolled<RunRecord>(own_run ? runPath(run_name) : null, { experiment_name }, 0);
  // Which texts are searched is not known before both have come, or one could not.
  const isKnown = Boolean(index || !own_run || ((record.value || record.error) && (stored.value || stored.error)));
  const ofRun = own_run && isKnown ? searchedOf(own_run, record.value ?? null, stored.value?.items ?? []) : [];
  const shared = index || (ofRun[0]?.value ?? "");
  const left = useSearch(a, shared, isKnown ? asked : "");
  const right = useSearch(b ?? a, shared, isKnown && b ? asked : "");
  const others = models.filter(({ id, kind }) => kind === "run" && runOf(id, models) !== own_run).map(({ id }) => runOf(id, models)!);
  const otherData = (stored.value?.items ?? []).map(({ name }) => DATA + name).filter((value) => ofRun.every((one) => one.value !== value));
  const isListed = [...ofRun.map(({ value }) => value), ...others, ...otherData].includes(shared);
  const [own, other] = [left.hits ?? [], right.hits ?? []];
  const coloured = coloursOf([...own, ...other]);
  const side = (name: "a" | "b", of: Side | null, found: Search, against: Search) => (
    <Card>
      <h2 class="unseen">Results of the {name === "a" ? "first" : "second"} model</h2>
      <div class="stack near">
        <ModelSelect label={name === "a" ? "First model" : "Second model"} side={of} models={models} isOptional={name === "b"} onChange={(next) => show({ [name]: next })} />
        {of ? <Found found={found} against={against} asked={asked} coloured={coloured} side={of} /> : <p class="quiet">Choose one to see both beside each other.</p>}
      </div>
    </Card>
  );
  return (
    <div class="stack">
      <Card>
        <form class="ask" onSubmit={(event) => (event.preventDefault(), typed.trim() && show({ q: typed.trim() }))}>
          <Field label="Query">
            {(marks) => <input {...marks} type="search" dir="auto" autofocus value={typed} placeholder="Type a text and press Enter" onInput={(event) => setTyped(event.currentTarget.value)} />}
          </Field>
          <Field label="Searched among">
            {(marks) => (
              <select {...marks} value={shared} onChange={(event) => show({ index: event.currentTarget.value })}>
                {!isListed && <option value={shared}>{shared.startsWith(DATA) ? shared.slice(DATA.length) : shared || "the first model's texts"}</option>}
                {ofRun.length > 0 && (
                  <optgroup label="Of the first model's run">
                    {ofRun.map(({ value, words }) => (
                      <option value={value}>{value === shared && value === own_run && left.answer ? `${number(left.answer.n_texts)} ${words}` : words}</option>
                    ))}
                  </optgroup>
                )}
                {others.length > 0 && <optgroup label="Texts of another run">{others.map((key) => <option value={key}>{key}</option>)}</optgroup>}
                {otherData.length > 0 && (
                  <optgroup label="Stored data">{otherData.map((value) => <option value={value}>{value.slice(DATA.length)}</option>)}</optgroup>
                )}
              </select>
            )}
          </Field>
          <button type="submit" class="primary" disabled={!typed.trim()}>Search</button>
        </form>
      </Card>
      {asked && left.hits && right.hits && (
        <p aria-live="polite">
          {plural(moves(own, other).filter((move) => move !== null).length, "text")} of {own.length} stand on both sides.{" "}
          <span class="quiet">The number below a text is its cosine to the query.</span>
        </p>
      )}
      <div class="two">
        {side("a", a, left, right)}
        {side("b", b, right, left)}
      </div>
    </div>
  );
}

/** Labels that more than one result has, with their colours. */
function coloursOf(hits: Hit[]): Map<string, number> {
  const labels = hits.map(({ label }) => label);
  const often = new Set(countedLabels(labels).filter(([, n]) => n > 1).map(([label]) => label));
  return colourPlaces(labels.filter((label) => label !== null && often.has(label)));
}

interface Search {
  hits?: Hit[];
  answer?: Extract<SearchAnswer, { ready: true }>;
  progress?: { n_done: number; n_texts: number };
  error?: ApiError;
  isPending: boolean;
}

/** Ask one model; while it embeds the texts that are searched, ask again each second. */
function useSearch({ artifact, untuned }: Side, index: string, query: string): Search {
  const [found, setFound] = useState<Search>({ isPending: false });
  useEffect(() => setFound({ isPending: Boolean(query) }), [artifact, untuned, index]);
  useEffect(() => {
    if (!query) return setFound({ isPending: false });
    const among = index.startsWith(DATA) ? { index_data: index.slice(DATA.length) } : index ? { index_run: index } : {};
    const body = { data: [{ text: query }], parameters: { artifact, untuned, limit: N_RESULTS, ...among } };
    let isOver = false, timer = 0;
    setFound((now) => ({ ...now, error: undefined, isPending: true }));
    const ask = async () => {
      try {
        const answer = await post<SearchAnswer>("/search", body);
        if (isOver) return;
        if (answer.ready) return setFound({ hits: answer.results, answer, isPending: false });
        setFound({ progress: answer, isPending: true });
      } catch (thrown) {
        if (isOver) return;
        const error = asApiError(thrown);
        setFound((now) => ({ ...now, error, isPending: false }));
        if (!error.isAway && error.status !== 429) return;
      }
      timer = setTimeout(() => void ask(), PAUSE_MS);
    };
    void ask();
    return () => ((isOver = true), clearTimeout(timer));
  }, [artifact, untuned, index, query, token.value]);
  return found;
}

interface ModelSelectOptions {
  label: string;
  /** Null for none. */
  side: Side | null;
  models: Model[];
  /** Whether none may be chosen. */
  isOptional: boolean;
  onChange: (name: string) => void;
}

function ModelSelect({ label, side, models, isOptional, onChange }: ModelSelectOptions) {
  const runs = models.filter(({ kind }) => kind === "run").sort((a, b) => b.created - a.created);
  const aliases = models.filter(({ kind }) => kind === "alias");
  const isThere = !side || (side.untuned ? runs : models).some(({ id }) => id === side.artifact);
  const option = (of: Side, words: string) => <option value={sideName(of)}>{words}</option>;
  return (
    <Field label={label}>
      {(marks) => (
        <select {...marks} value={side ? sideName(side) : NOBODY} onChange={(event) => onChange(event.currentTarget.value)}>
          {isOptional && <option value={NOBODY}>none</option>}
          {!isThere && option(side, `${side.untuned ? "untuned model of " : ""}${side.artifact}`)}
          {aliases.length > 0 && <optgroup label="Aliases">{aliases.map(({ id }) => option({ artifact: id, untuned: false }, id))}</optgroup>}
          <optgroup label="Runs, the newest first">{runs.map(({ id }) => option({ artifact: id, untuned: false }, id))}</optgroup>
          <optgroup label="Untuned, as the run began">{runs.map(({ id }) => option({ artifact: id, untuned: true }, `untuned model of ${id}`))}</optgroup>
        </select>
      )}
    </Field>
  );
}

interface FoundOptions {
  found: Search;
  against: Search;
  asked: string;
  coloured: Map<string, number>;
  side: Side;
}

function Found({ found, against, asked, coloured, side }: FoundOptions) {
  const { hits, answer, progress, error, isPending } = found;
  if (!asked) return <p class="quiet">Its nearest texts will stand here. It is loaded when the first query comes, which takes some seconds.</p>;
  return (
    <div class="stack near" aria-busy={isPending}>
      {error && <ErrorNote error={saying(error)} />}
      {progress && (
        <div class="stack near" role="status">
          {progress.n_done > 0 ? (
            <>
              <p>The texts that are searched are embedded once: {number(progress.n_done)} of {number(progress.n_texts)}.</p>
              <progress max={progress.n_texts} value={progress.n_done} aria-label="Texts embedded" />
            </>
          ) : (
            <>
              <p>
                The model{side.untuned && " before tuning"} is being loaded and its texts encoded: none
                {progress.n_texts > 0 && ` of ${number(progress.n_texts)}`} yet. This happens once and takes some seconds, or longer with many texts.
              </p>
              <progress aria-label="Loading the model" />
            </>
          )}
        </div>
      )}
      {!hits && !progress && !error && <Loading what={`Asking the model${side.untuned ? " before tuning" : ""}; one that is not loaded yet takes some seconds`} />}
      {answer && (
        <small>
          {plural(answer.n_texts, "text")} · query embedded in {milliseconds(answer.encode_s)} · searched in {milliseconds(answer.search_s)}
        </small>
      )}
      {hits && !hits.length && <Note><p>There is nothing to search among.</p></Note>}
      {hits && hits.length > 0 && <Hits hits={hits} against={against.hits} coloured={coloured} isOld={isPending} />}
    </div>
  );
}

function saying(error: ApiError): Error {
  return error.status === 404 ? new Error(`${error.message}. Choose another; it may have been deleted.`) : withScope(error, "encode");
}

function Hits({ hits, against, coloured, isOld }: { hits: Hit[]; against?: Hit[]; coloured: Map<string, number>; isOld: boolean }) {
  const moved = against && moves(hits, against);
  return (
    <ol class={`hits ${isOld ? "old" : ""}`}>
      {hits.map(({ text, label, score }, rank) => (
        <li>
          <span class="rank">{rank + 1}</span>
          <div>
            <p class="clamp"><bdi>{text}</bdi></p>
            <small class="row">
              <span>{score.toFixed(3)}</span>
              {label !== null && (
                <span class="tagged">
                  {coloured.has(label) && <i style={{ background: `var(--series-${coloured.get(label)! + 1})` }} />}
                  <bdi class="cut">{label}</bdi>
                </span>
              )}
              {moved && <Moved by={moved[rank]!} />}
            </small>
          </div>
        </li>
      ))}
    </ol>
  );
}

function Moved({ by }: { by: number | null }) {
  if (by === null) return <span class="badge">only here</span>;
  if (by === 0) return <span class="quiet">same rank</span>;
  return <span class={`badge ${by > 0 ? "good" : "warn"}`}>{by > 0 ? "↑" : "↓"} {Math.abs(by)}<span class="unseen"> ranks {by > 0 ? "higher" : "lower"} than on the other side</span></span>;
}
