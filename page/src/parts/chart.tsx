// Curves, drawn by uPlot; the same numbers stand in a table for those who do not see them.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { capital, number } from "../format";
import { colour, isDark, seriesColours } from "../theme";

export interface Curve {
  label: string;
  /** *Shape:* one number a point, ascending. */
  x: number[];
  y: (number | null)[];
  /** Place in the order of colours; that of the curve when left out. */
  colour?: number;
  isDashed?: boolean;
  /** Drawn thin and pale, behind what is made of it. */
  isFaint?: boolean;
  showsPoints?: boolean;
}

export interface ChartOptions {
  curves: Curve[];
  xLabel: string;
  yLabel: string;
  height?: number;
  /** Bounds of the vertical axis; those of the curves when left out. */
  yRange?: [number, number];
  /** The vertical axis begins at 0 and goes at least this far. */
  leastY?: number;
  /** The vertical axis goes no further than this. */
  mostY?: number;
  /** How long the horizontal axis is at least, to the left of the last point. */
  leastX?: number;
  digits?: number;
  /** Without the values under the curves, for a small one of many. */
  isPlain?: boolean;
  /** Whether the horizontal axis counts, such as epochs. */
  countsX?: boolean;
}

const WHOLE_STEPS = [1, 2, 5].flatMap((step) => [1, 10, 100, 1000, 10_000, 100_000].map((ten) => step * ten)).sort((a, b) => a - b);
const ROWS_IN_TABLE = 200;

/** Curves over one axis; dragging zooms in, a double click out. */
export function Chart(options: ChartOptions) {
  const { curves, xLabel, yLabel, height = 240, yRange, digits = 4 } = options;
  const frame = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const shape = JSON.stringify([curves.map((c) => [c.label, c.colour, c.isDashed]), xLabel, yLabel, yRange, isDark.value]);
  useEffect(() => {
    const element = frame.current!;
    plot.current = new uPlot(
      settings({ ...options, height, digits }, element.clientWidth),
      joined(curves),
      element,
    );
    const observer = new ResizeObserver(() =>
      plot.current?.setSize({ width: Math.max(160, element.clientWidth), height }),
    );
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape, height]);
  useEffect(() => plot.current?.setData(joined(curves)), [curves]);
  return (
    <figure class="chart">
      <div ref={frame} role="img" aria-label={`${yLabel} by ${xLabel}: ${curves.map(summary).join("; ")}`} />
      <details>
        <summary>{capital(yLabel)} as a table</summary>
        <CurveTable curves={curves} xLabel={xLabel} digits={digits} />
      </details>
    </figure>
  );
}

function summary(curve: Curve): string {
  const known = curve.y.filter((value): value is number => value !== null);
  if (!known.length) return `${curve.label}: nothing yet`;
  return `${curve.label}: from ${number(known[0])} to ${number(known.at(-1))}`;
}

/** Return the curves over the x of all, as uPlot takes them. */
function joined(curves: Curve[]): uPlot.AlignedData {
  if (!curves.length) return [[]];
  return uPlot.join(curves.map((curve) => [curve.x, curve.y] as uPlot.AlignedData));
}

function settings(options: ChartOptions, width: number): uPlot.Options {
  const colours = seriesColours();
  const axis = {
    stroke: colour("ink-2"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { stroke: colour("line"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    labelGap: 0,
  };
  return {
    width: Math.max(160, width),
    height: options.height!,
    padding: [10, null, 0, 0],
    scales: { x: { time: false, ...horizontal(options) }, y: vertical(options) },
    legend: { show: !options.isPlain, markers: { dash: (plot, place) => (plot.series[place]?.dash ? "dashed" : "solid") } },
    axes: [
      { ...axis, label: options.xLabel, labelSize: 18, size: 34, ...(options.countsX && { incrs: WHOLE_STEPS }) },
      { ...axis, size: (_, ticks) => 16 + 7 * Math.max(1, ...(ticks ?? []).map((text) => text.length)), values: (_, ticks) => ticks.map(tick) },
    ],
    cursor: { y: false, points: { size: 7 } },
    series: [
      { label: options.xLabel, value: shownWith(2) },
      ...options.curves.map((curve, place) => ({
        label: curve.label,
        stroke: colours[(curve.colour ?? place) % colours.length]! + (curve.isFaint ? "59" : ""),
        width: curve.isFaint ? 1 : 1.75,
        dash: curve.isDashed ? [5, 4] : undefined,
        spanGaps: true,
        points: { show: curve.showsPoints ?? undefined, size: 6 },
        value: shownWith(options.digits!),
      })),
    ],
  };
}

/** Return an axis from 0 with so much room below that a curve at 0 is not cut in half. */
function fromZero(top: number): [number, number] {
  return [-top / 50, top];
}

function vertical({ yRange, leastY, mostY = Infinity }: ChartOptions): uPlot.Scale {
  if (yRange) return { range: yRange };
  if (leastY !== undefined) return { range: (_, __, high) => fromZero(Math.max(leastY, 1.1 * (high ?? 0))) };
  return {
    range: (_, low, high) => {
      if (low === null) return [low, high]; // nothing yet
      // A level curve lies in the middle, where uPlot would begin the axis at 0.
      const room = low === high ? 0.1 * Math.abs(low) || 1 : 0;
      const [from, to] = uPlot.rangeNum(low - room, high + room, 0.1, true);
      return [from, to === null ? to : Math.min(to, mostY)];
    },
  };
}

function horizontal({ leastX }: ChartOptions): uPlot.Scale {
  if (leastX === undefined) return {};
  return {
    range: ({ data: [x] }, low, high) => {
      const isZoomed = low !== x[0] || high !== x.at(-1);
      return isZoomed ? [low, high] : [Math.min(low, high - leastX), high];
    },
  };
}

/** Return what writes a value below the curves: that under the cursor, and without one the last there is. */
function shownWith(digits: number) {
  return ({ data }: uPlot, value: number | null, series: number, place: number | null) =>
    number(place === null ? (data[series] as (number | null)[]).findLast((each) => each != null) : value, digits);
}

function tick(value: number | null): string {
  if (value === null) return "";
  if (value !== 0 && Math.abs(value) < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return Number(value.toPrecision(6)).toLocaleString("en", { maximumFractionDigits: 6 });
}

function CurveTable({ curves, xLabel, digits }: { curves: Curve[]; xLabel: string; digits: number }) {
  const [xs = [], ...columns] = joined(curves) as (number | null)[][];
  const stride = Math.max(1, Math.ceil(xs.length / ROWS_IN_TABLE));
  const rows = xs.map((_, row) => row).filter((row) => row % stride === 0 || row === xs.length - 1);
  return (
    <div class="table-frame" tabIndex={0} role="region" aria-label={`Values by ${xLabel}`}>
      <table>
        <thead>
          <tr>
            <th scope="col">{xLabel}</th>
            {curves.map((curve) => <th scope="col">{curve.label}</th>)}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr>
              <th scope="row">{xs[row]}</th>
              {columns.map((column) => <td class="number">{number(column[row], digits)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
