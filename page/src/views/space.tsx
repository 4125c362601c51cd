// The texts of a run's evaluation as points: near each other where the model takes them for alike, before training and after.
import { useEffect, useId, useMemo, useState } from "preact/hooks";
import { zoomIdentity, type ZoomTransform } from "d3-zoom";
import { number, percent, plural } from "../format";
import { usePolled } from "../live";
import { Empty, ErrorNote, Loading, Note, Table } from "../parts/basics";
import { CaptionChoice } from "../parts/caption";
import { Choices } from "../parts/field";
import { type Group, Scatter, zoomed } from "../parts/scatter";
import { withScope } from "../parts/stored_data";
import { between, boundsOf, colourPlaces, countedLabels } from "../points";
import { evaluationsOf, hasEnded, type RunRecord, runPath, type SpaceMap } from "../records";

const INTERVAL_MS = 15_000;
const MOVE_MS = 900;
const N_IN_TABLE = 50;
const MANY_LABELS = 500;
const METHOD_WORDS: Record<string, string> = { pca: "PCA", umap: "UMAP" };

type Layout = "beside" | "moving";

export function SpaceView({ run }: { run: RunRecord }) {
  const ended = hasEnded(run.status);
  const found = usePolled<{ evaluations: Record<string, SpaceMap> }>(
    runPath(run.name, "/map"), { experiment_name: run.experiment_name }, ended ? 0 : INTERVAL_MS,
  );
  const [chosen, setChosen] = useState("");
  const evaluations = found.value?.evaluations;
  if (found.error && !evaluations) return <ErrorNote error={withScope(found.error, "read")} onRetry={found.refresh} />;
  if (!evaluations) return <Loading what="Fetching the map" />;
  const captions = Object.keys(evaluations);
  const caption = captions.includes(chosen) ? chosen : captions[0];
  if (caption === undefined) return <NoMap run={run} ended={ended} />;
  return (
    <div class="stack">
      <h2 class="unseen">Texts as points</h2>
      {captions.length > 1 && <div class="row"><CaptionChoice captions={captions} value={caption} onChange={setChosen} /></div>}
      <Space key={caption} map={evaluations[caption]!} ended={ended} />
    </div>
  );
}

function NoMap({ run, ended }: { run: RunRecord; ended: boolean }) {
  const isEvaluated = evaluationsOf(run).length > 0;
  if (isEvaluated && !ended) return <Empty title="Not yet"><p>The map comes with the evaluation before training.</p></Empty>;
  return (
    <Empty title="No map">
      <p>{isEvaluated ? "The run ended before its first evaluation, whose texts the map would show." : "The run has no evaluation, whose texts the map would show. Start the next one with a share held out."}</p>
    </Empty>
  );
}

function Space({ map, ended }: { map: SpaceMap; ended: boolean }) {
  const methods = Object.keys(map.methods);
  const [method, setMethod] = useState(methods[0] ?? "pca");
  const [layout, setLayout] = useState<Layout>(matchMedia("(min-width: 900px)").matches ? "beside" : "moving");
  const [highlighted, setHighlighted] = useState("");
  const [active, setActive] = useState<number | null>(null);
  const [source, setSource] = useState("before");
  const [view, setView] = useState<ZoomTransform>(zoomIdentity);
  const summary = useId();
  const { before, after, explained } = map.methods[method] ?? map.methods[methods[0]!]!;
  const bounds = useMemo(() => boundsOf(before, after), [before, after]);
  const groups = useMemo(() => groupsOf(map, highlighted), [map, highlighted]);
  const isMoving = layout === "moving" && after !== null;
  const [share, setShare, play] = useShare();
  const places = useMemo(
    () => ({ before: between(before, after, 0), after: between(before, after, 1) }),
    [before, after],
  );
  const moved = useMemo(() => (isMoving ? between(before, after, share) : places.before), [before, after, share, isMoving]);
  useEffect(() => setActive(null), [map]);
  const one = (name: string, points: Float32Array, words: string) => (
    <figure class="map">
      <figcaption><h3>{words}</h3></figcaption>
      <Scatter
        places={points} bounds={bounds} groups={groups} view={view} onView={setView} active={active}
        onActive={(point) => (setSource(name), setActive(point))}
        radius_px={before.length > 5000 ? 1.8 : before.length > 1000 ? 2.4 : 4}
        label={`${words}: ${plural(map.n_shown, "text")}. Arrow keys go from text to text, plus and minus zoom, 0 shows all.`}
        describedBy={summary}
        tip={source === name && active !== null ? <Tip map={map} point={active} /> : null}
      />
    </figure>
  );
  return (
    <div class="stack">
      <div class="row spread">
        <div class="row">
          {methods.length > 1 && (
            <Choices label="Method" value={method} onChange={(name) => (setMethod(name), setView(zoomIdentity))} choices={methods.map((name) => ({ value: name, label: METHOD_WORDS[name] ?? name }))} />
          )}
          {after && (
            <Choices<Layout> label="Layout" value={layout} onChange={setLayout} choices={[{ value: "beside", label: "Side by side" }, { value: "moving", label: "One map that moves" }]} />
          )}
        </div>
        <div class="choices">
          <button type="button" class="small" aria-label="Zoom in" onClick={() => setView(zoomedHere(view, 1.5))}>+</button>
          <button type="button" class="small" aria-label="Zoom out" onClick={() => setView(zoomedHere(view, 1 / 1.5))}>−</button>
          <button type="button" class="small" onClick={() => setView(zoomIdentity)}>Show all</button>
        </div>
      </div>
      {isMoving && (
        <div class="move">
          <button type="button" onClick={() => play(share < 0.5 ? 1 : 0)}>{share < 0.5 ? "▶ To after" : "◀ To before"}</button>
          <label class="inline">
            before
            <input type="range" min="0" max="1" step="0.01" value={share} aria-label="From before to after" onInput={(event) => setShare(Number(event.currentTarget.value))} />
            after
          </label>
        </div>
      )}
      {!after && <Note><p>{ended ? "The run ended before an epoch was evaluated: there is no map after training." : "After the first epoch a second map stands beside this one."}</p></Note>}
      {isMoving || !after ? one("before", moved, isMoving ? wordsOf(share) : "Before training") : (
        <div class="two">
          {one("before", places.before, "Before training")}
          {one("after", places.after, "After training")}
        </div>
      )}
      <p class="unseen" aria-live="polite">{active === null ? "" : `${map.labels[active] ?? "no label"}, ${map.roles[active]}: ${map.texts[active]}`}</p>
      <Legend map={map} highlighted={highlighted} onHighlight={setHighlighted} />
      <p class="quiet" id={summary}>
        {map.n_shown < map.n_texts ? `${number(map.n_shown)} of ${number(map.n_texts)} texts, drawn by chance. ` : ""}
        {method === "umap"
          ? "UMAP keeps near texts near; how far apart groups lie, and how large they are, means little."
          : explained
            ? `The two axes hold ${percent(explained.before)} of the variance before${explained.after === null ? "" : ` and ${percent(explained.after)} after`}; the rest does not show here.`
            : ""}
        {after ? " The map after training is turned so that it lies as nearly as can be on the one before." : ""}
      </p>
      <Sample map={map} before={before} after={after} />
    </div>
  );
}

function zoomedHere(view: ZoomTransform, factor: number): ZoomTransform {
  const canvas = document.querySelector<HTMLElement>(".scatter canvas");
  return zoomed(view, factor, canvas?.clientWidth ?? 0, canvas?.clientHeight ?? 0);
}

function wordsOf(share: number): string {
  if (share === 0) return "Before training";
  return share === 1 ? "After training" : `${percent(share)} of the way to after training`;
}

/** A share of the way, and what lets it run to an end; at once for those who want no motion. */
function useShare(): [number, (share: number) => void, (end: number) => void] {
  const [share, setShare] = useState(0);
  const [end, setEnd] = useState<number | null>(null);
  useEffect(() => {
    if (end === null) return;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return (setShare(end), setEnd(null));
    const from = share, began = performance.now();
    let frame = requestAnimationFrame(function step(time) {
      const passed = Math.min(1, Math.max(0, time - began) / MOVE_MS);
      setShare(from + (end - from) * (passed < 0.5 ? 2 * passed ** 2 : 1 - 2 * (1 - passed) ** 2));
      if (passed < 1) frame = requestAnimationFrame(step);
      else setEnd(null);
    });
    return () => cancelAnimationFrame(frame);
  }, [end]);
  return [share, (value) => (setEnd(null), setShare(value)), setEnd];
}

/** Points that look alike, the grey ones first and so below, queries above the texts searched. */
function groupsOf(map: SpaceMap, highlighted: string): Group[] {
  const colours = colourPlaces(map.labels);
  const byLook = new Map<string, { rank: number; points: number[]; group: Omit<Group, "points"> }>();
  map.labels.forEach((label, point) => {
    const place = label === null ? undefined : colours.get(label);
    const isOther = highlighted ? label !== highlighted : place === undefined;
    const colour = isOther ? (highlighted ? "line" : "line-strong") : `series-${(place ?? 1) + 1}`;
    const isQuery = map.roles[point] === "query";
    const key = `${colour} ${isQuery}`;
    if (!byLook.has(key)) {
      byLook.set(key, { rank: (isOther ? 0 : 2) + (isQuery ? 1 : 0), points: [], group: { colour, shape: isQuery ? "diamond" : "circle" } });
    }
    byLook.get(key)!.points.push(point);
  });
  return [...byLook.values()].sort((a, b) => a.rank - b.rank).map(({ points, group }) => ({ ...group, points: Uint32Array.from(points) }));
}

function Tip({ map, point }: { map: SpaceMap; point: number }) {
  return (
    <>
      <strong><bdi>{map.labels[point] ?? "no label"}</bdi></strong> <small>{map.roles[point]}</small>
      <p class="clamp"><bdi>{map.texts[point]}</bdi></p>
    </>
  );
}

function Legend({ map, highlighted, onHighlight }: { map: SpaceMap; highlighted: string; onHighlight: (label: string) => void }) {
  const list = useId();
  const counted = useMemo(() => countedLabels(map.labels), [map]);
  const colours = useMemo(() => colourPlaces(map.labels), [map]);
  const known = useMemo(() => new Map(counted), [counted]);
  const [typed, setTyped] = useState("");
  const type = (value: string) => (setTyped(value), onHighlight(known.has(value) ? value : ""));
  return (
    <section class="stack near" aria-label="Labels">
      <div class="legend">
        {counted.slice(0, colours.size).map(([label, n], place) => (
          <button type="button" class="small tagged" aria-pressed={label === highlighted} onClick={() => type(label === highlighted ? "" : label)}>
            <i style={{ background: `var(--series-${place + 1})` }} /><bdi class="cut">{label}</bdi> <small>{number(n)}</small>
          </button>
        ))}
        {counted.length > colours.size && (
          <span class="tagged"><i style={{ background: "var(--line-strong)" }} />{plural(counted.length - colours.size, "other label")}</span>
        )}
      </div>
      <div class="row">
        <input class="label-search" type="search" list={list} placeholder="Find a label" aria-label="Find a label" value={typed} onInput={(event) => type(event.currentTarget.value)} />
        <datalist id={list}>{counted.slice(0, MANY_LABELS).map(([label, n]) => <option value={label}>{plural(n, "text")}</option>)}</datalist>
        {typed && !highlighted && <small role="status">no label of that name</small>}
        {highlighted && <small role="status">{plural(known.get(highlighted)!, "text")} in colour</small>}
        <span class="quiet row shapes"><span><span aria-hidden="true">◆</span> query</span>{map.roles.includes("index") && <span><span aria-hidden="true">●</span> searched text</span>}</span>
      </div>
    </section>
  );
}

function Sample({ map, before, after }: { map: SpaceMap; before: SpaceMap["methods"][string]["before"]; after: SpaceMap["methods"][string]["after"] }) {
  const place = (at: [number, number] | undefined) => (at ? `${at[0].toFixed(2)}, ${at[1].toFixed(2)}` : "–");
  const stride = Math.max(1, Math.ceil(map.texts.length / N_IN_TABLE));
  const rows = map.texts.map((_, row) => row).filter((row) => row % stride === 0);
  return (
    <details>
      <summary>A sample of the texts as a table</summary>
      <div class="report">
        <Table caption="A sample of the texts and where they lie">
          <thead>
            <tr><th scope="col">text</th><th scope="col">label</th><th scope="col">role</th><th scope="col">before</th>{after && <th scope="col">after</th>}</tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr>
                <td class="text"><bdi>{map.texts[row]}</bdi></td>
                <td><bdi>{map.labels[row] ?? "–"}</bdi></td>
                <td>{map.roles[row]}</td>
                <td class="number">{place(before[row])}</td>
                {after && <td class="number">{place(after[row])}</td>}
              </tr>
            ))}
          </tbody>
        </Table>
      </div>
    </details>
  );
}
