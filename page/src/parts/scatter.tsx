// Points on a canvas that is panned and zoomed by wheel, drag, fingers and keys.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { quadtree, type Quadtree } from "d3-quadtree";
import { select } from "d3-selection";
import { zoom, zoomIdentity, type ZoomTransform, zoomTransform } from "d3-zoom";
import type { Bounds } from "../points";
import { markOf, pixelOf, type Shape, stamp } from "../stamp";
import { colour, isDark } from "../theme";

/** Points that look alike. */
export interface Group {
  points: Uint32Array;
  /** Of the style sheet, such as `series-1`. */
  colour: string;
  shape: Shape;
}

export interface ScatterOptions {
  /** *Shape:* x and y of each point, one after the other. */
  places: Float32Array;
  bounds: Bounds;
  /** In the order in which they are drawn, the last on top. */
  groups: Group[];
  radius_px: number;
  /** The point that is looked at. */
  active: number | null;
  onActive: (point: number | null) => void;
  /** How it is zoomed and moved; maps that are looked at together share it. */
  view: ZoomTransform;
  onView: (view: ZoomTransform) => void;
  label: string;
  describedBy?: string;
  /** What stands beside the point that is looked at. */
  tip?: ComponentChildren;
}

const REACH_PX = 24;
const ZOOM: [number, number] = [0.7, 60];
const STEPS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};
const FACTORS: Record<string, number> = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 };

export function Scatter(options: ScatterOptions) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const ring = useRef<HTMLDivElement>(null);
  const now = useRef(options);
  now.current = options;
  const tree = useRef<Quadtree<number> | null>(null);
  const { places, groups, view, active, radius_px } = options;
  useEffect(() => void (tree.current = null), [places]);
  const dark = isDark.value;
  useEffect(() => {
    const element = canvas.current!;
    const frame = requestAnimationFrame(() => draw(element, now.current));
    return () => cancelAnimationFrame(frame);
  }, [places, groups, view, radius_px, dark]);
  useLayoutEffect(() => placeRing(ring.current!, canvas.current!, now.current), [places, view, active]);
  useEffect(() => {
    const element = canvas.current!, mark = ring.current!;
    const behaviour = zoom<HTMLCanvasElement, unknown>()
      .scaleExtent(ZOOM)
      .on("zoom", (event) => event.sourceEvent && now.current.onView(event.transform));
    select(element).call(behaviour).on("dblclick.zoom", () => now.current.onView(zoomIdentity));
    const observer = new ResizeObserver(() => {
      fit(element);
      draw(element, now.current);
      placeRing(mark, element, now.current);
    });
    observer.observe(element.parentElement!);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    // d3 keeps the view of each element by itself; another map, a key or a button may have changed it.
    const element = canvas.current!;
    if (zoomTransform(element) !== view) select(element).call(zoom<HTMLCanvasElement, unknown>().transform, view);
  }, [view]);
  const look = (event: PointerEvent) => {
    const { left, top } = canvas.current!.getBoundingClientRect();
    tree.current ??= treeOf(now.current.places);
    const found = nearest(tree.current, canvas.current!, now.current, [event.clientX - left, event.clientY - top]);
    if (found !== now.current.active) now.current.onActive(found);
  };
  const onKey = (event: KeyboardEvent) => {
    const changed = afterKey(event.key, canvas.current!, now.current);
    if (!changed) return;
    event.preventDefault();
    if (changed.view) now.current.onView(changed.view);
    if (changed.active !== undefined) now.current.onActive(changed.active);
  };
  return (
    <div class="scatter">
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-roledescription="map of texts"
        aria-label={options.label}
        aria-describedby={options.describedBy}
        onPointerMove={(event) => event.buttons === 0 && look(event)}
        onPointerDown={(event) => event.pointerType !== "mouse" && look(event)}
        onPointerLeave={(event) => event.pointerType === "mouse" && options.onActive(null)}
        onKeyDown={onKey}
      />
      <div class="ring" ref={ring} aria-hidden="true" hidden>
        {options.tip && active !== null && <div class="tip">{options.tip}</div>}
      </div>
    </div>
  );
}

export function zoomed(view: ZoomTransform, factor: number, width: number, height: number): ZoomTransform {
  const k = Math.min(ZOOM[1], Math.max(ZOOM[0], view.k * factor));
  const [x, y] = view.invert([width / 2, height / 2]);
  return zoomIdentity.translate(width / 2 - k * x, height / 2 - k * y).scale(k);
}

interface Change {
  view?: ZoomTransform;
  active?: number | null;
}

function afterKey(key: string, element: HTMLElement, options: ScatterOptions): Change | null {
  if (key === "Escape") return { active: null };
  if (key === "0") return { view: zoomIdentity };
  if (FACTORS[key]) return { view: zoomed(options.view, FACTORS[key], element.clientWidth, element.clientHeight) };
  return STEPS[key] ? { active: neighbour(element, options, STEPS[key]) } : null;
}

interface Scale {
  k: number;
  left: number;
  top: number;
}

/** From data to the canvas in CSS pixels: x to left + k x, y to top - k y, so that up is up. */
function scaleOf(element: HTMLElement, { bounds, view }: ScatterOptions): Scale {
  const [width, height] = [element.clientWidth, element.clientHeight];
  const extent = bounds.x[1] - bounds.x[0];
  const k = Math.min(width, height) / extent;
  const left = (width - k * extent) / 2 - k * bounds.x[0];
  const top = (height - k * extent) / 2 + k * bounds.y[1];
  return { k: view.k * k, left: view.applyX(left), top: view.applyY(top) };
}

function treeOf(places: Float32Array): Quadtree<number> {
  const points = Array.from({ length: places.length / 2 }, (_, i) => i);
  return quadtree<number>(points, (i) => places[2 * i]!, (i) => places[2 * i + 1]!);
}

function nearest(tree: Quadtree<number>, element: HTMLElement, options: ScatterOptions, [x, y]: [number, number]): number | null {
  const { k, left, top } = scaleOf(element, options);
  return tree.find((x - left) / k, (top - y) / k, REACH_PX / k) ?? null;
}

/** Return the next point in a direction; the one nearest to the middle when none is looked at. */
function neighbour(element: HTMLElement, options: ScatterOptions, [dx, dy]: [number, number]): number | null {
  const { places, active } = options;
  const { k, left, top } = scaleOf(element, options);
  const at = (i: number): [number, number] => [left + k * places[2 * i]!, top - k * places[2 * i + 1]!];
  const [fromX, fromY] = active === null ? [element.clientWidth / 2, element.clientHeight / 2] : at(active);
  let best = active, shortest = Infinity;
  for (let i = 0; 2 * i < places.length; i += 1) {
    const [x, y] = at(i);
    const ahead = (x - fromX) * dx + (y - fromY) * dy;
    const aside = Math.abs((x - fromX) * dy) + Math.abs((y - fromY) * dx);
    const length = active === null ? Math.hypot(x - fromX, y - fromY) : ahead + 2 * aside;
    if ((active === null || (i !== active && ahead > 0.5 && aside <= ahead)) && length < shortest) [best, shortest] = [i, length];
  }
  return best;
}

function fit(element: HTMLCanvasElement): void {
  const ratio = Math.min(devicePixelRatio, 2);
  element.width = Math.max(1, Math.round(element.clientWidth * ratio));
  element.height = Math.max(1, Math.round(element.clientHeight * ratio));
}

function draw(element: HTMLCanvasElement, options: ScatterOptions): void {
  if (!element.clientWidth) return;
  const { width, height } = element;
  const ratio = width / element.clientWidth;
  const { k, left, top } = scaleOf(element, options);
  const image = new ImageData(width, height);
  const picture = { pixels: new Uint32Array(image.data.buffer), width, height };
  const radius = options.radius_px * ratio * Math.min(2.2, Math.max(1, options.view.k) ** 0.35);
  for (const { points, colour: name, shape } of options.groups) {
    const at = new Int32Array(2 * points.length);
    for (let i = 0; i < points.length; i += 1) {
      at[2 * i] = Math.round(ratio * (left + k * options.places[2 * points[i]!]!));
      at[2 * i + 1] = Math.round(ratio * (top - k * options.places[2 * points[i]! + 1]!));
    }
    stamp(picture, markOf(shape, shape === "diamond" ? 1.45 * radius : radius), pixelOf(colour(name)), at);
  }
  element.getContext("2d")!.putImageData(image, 0, 0);
}

function placeRing(ring: HTMLElement, element: HTMLElement, options: ScatterOptions): void {
  const { active, places } = options;
  const { k, left, top } = scaleOf(element, options);
  const x = active === null ? -1 : left + k * places[2 * active]!;
  const y = active === null ? -1 : top - k * places[2 * active + 1]!;
  const [width, height] = [element.clientWidth, element.clientHeight];
  ring.hidden = x < 0 || y < 0 || x > width || y > height;
  ring.style.transform = `translate(${x}px, ${y}px)`;
  ring.classList.toggle("leftwards", x > width / 2);
  ring.classList.toggle("upwards", y > height / 2);
  // No wider than the room that the map has on that side.
  ring.style.setProperty("--room", `${Math.max(x, width - x) - 20}px`);
}
