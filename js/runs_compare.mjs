// @ts-check
/**
 * Several runs' held-out curves on one chart, as a page of the sidebar; a run that was measured otherwise isn't drawn, and why is said.
 */

import { element } from "./elements.mjs";
import { getJson } from "./host.mjs";
import { signed } from "./history.mjs";
import { extent, path, svg } from "./lines.mjs";
import { say, translated } from "./words.mjs";

const HEIGHT_PX = 220, WIDTH_PX = 260, LEFT = 42, RIGHT = 8, TOP = 8, BOTTOM = 20;
const NUM_COLOURS = 8; // of theme.css

/**
 * @typedef {object} Curve
 * @property {string} name
 * @property {[number, number, number][]} points step, change in percent, standard error in percent
 * @property {number | null} chosen_step
 */

/** @param {string[]} names of the runs @param {() => void} back */
export function comparisonOf(names, back) {
  const body = element("div", { className: "body", ariaLive: "polite" }, element("div", { className: "quiet", textContent: say("runs.compare.reading") }));
  const heading = element("h3", { textContent: say("runs.compare.heading", { count: names.length }), tabIndex: -1 });
  const page = element("div", "details", element("div", "top", element("button", { className: "back", textContent: say("runs.back"), onclick: back })), element("div", "scrolled", heading, body));
  const query = names.map((name) => `run=${encodeURIComponent(name)}`).join("&");
  getJson(`/pistachio/compare?${query}`).then(
    (answer) => body.replaceChildren(...shown(answer)),
    (error) => body.replaceChildren(element("div", { className: "problem", role: "alert", textContent: String(error.message) })),
  );
  return page;
}

/** @param {{curves: Curve[], left_out: Record<string, string>, left_out_messages: Record<string, import("./words.mjs").Message | null>}} answer */
function shown({ curves, left_out: leftOut, left_out_messages: messages }) {
  const problems = Object.entries(leftOut).map(([run, words]) => element("div", { className: "problem", textContent: translated(words, messages[run]) }));
  if (curves.length < 2) return problems;
  const keys = curves.map((curve, i) => keyOf(curve, i));
  const chart = new ComparisonChart(curves, (step) => keys.forEach(({ read }) => read(step)));
  const left = problems.length ? [element("div", { className: "quiet", textContent: say("runs.compare.left_out") }), ...problems] : [];
  return [chart.root, element("ul", { className: "keys", role: "list" }, ...keys.map(({ row }) => row)), element("div", { className: "quiet", textContent: say("runs.compare.words") }), ...left];
}

/** @param {number} index */
const colour = (index) => `var(--pistachio-curve-${(index % NUM_COLOURS) + 1})`;

/** A curve's name and its number: at the step that is pointed at, else at the chosen one. @param {Curve} curve @param {number} index */
function keyOf(curve, index) {
  const value = element("span", "value");
  const row = element("li", "key", element("span", { className: "name", textContent: curve.name, title: curve.name }), value);
  row.style.setProperty("--colour", colour(index));
  const read = (/** @type {number | null} */ step) => {
    const at = step ?? curve.chosen_step ?? curve.points.at(-1)?.[0] ?? 0;
    const [found, percent, margin] = nearest(curve, at) ?? [0, NaN, 0];
    const words = { step: String(found), change: Number.isFinite(percent) ? signed(percent) : "", margin: margin.toFixed(1) };
    value.textContent = say(step === null && curve.chosen_step !== null ? "runs.compare.chosen" : "runs.compare.at", words);
  };
  read(null);
  return { row, read };
}

/** @param {Curve} curve @param {number} step */
function nearest(curve, step) {
  let best = null;
  for (const point of curve.points) if (!best || Math.abs(point[0] - step) < Math.abs(best[0] - step)) best = point;
  return best;
}

class ComparisonChart {
  /** @param {Curve[]} curves @param {(step: number | null) => void} point tells which step is pointed at */
  constructor(curves, point) {
    this.curves = curves;
    this.point = point;
    this.width = WIDTH_PX;
    this.steps = [...new Set(curves.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
    this.range = extent(curves.flatMap(({ points }) => points));
    this.pointer = svg("line", { class: "pointer", visibility: "hidden", y1: TOP, y2: HEIGHT_PX - BOTTOM });
    this.root = element("div", { className: "compared", tabIndex: 0, role: "group", ariaLabel: say("runs.compare.keys") });
    this.root.addEventListener("pointermove", (event) => this.show(this.stepAt(event.clientX - this.root.getBoundingClientRect().left)));
    this.root.addEventListener("pointerleave", () => this.show(null));
    this.root.addEventListener("blur", () => this.show(null));
    this.root.addEventListener("keydown", (event) => this.move(event));
    /** @type {number | null} */
    this.shown = null;
    new ResizeObserver(() => {
      if (this.root.clientWidth && this.root.clientWidth !== this.width) {
        this.width = this.root.clientWidth;
        this.draw();
      }
    }).observe(this.root);
    this.draw();
  }

  /** @param {number} step */
  x(step) {
    return LEFT + ((this.width - LEFT - RIGHT) * step) / this.range.last;
  }

  /** @param {number} percent */
  y(percent) {
    return HEIGHT_PX - BOTTOM - ((HEIGHT_PX - BOTTOM - TOP) * (percent - this.range.low)) / (this.range.high - this.range.low);
  }

  /** @param {number} x */
  stepAt(x) {
    const step = ((x - LEFT) * this.range.last) / (this.width - LEFT - RIGHT);
    return this.steps.reduce((best, each) => (Math.abs(each - step) < Math.abs(best - step) ? each : best), this.steps[0]);
  }

  /** @param {number | null} step */
  show(step) {
    if (step === this.shown) return;
    this.shown = step;
    this.pointer.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) this.pointer.setAttribute(end, String(this.x(step)));
    this.point(step);
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const last = this.steps.length - 1, at = this.shown === null ? -1 : this.steps.indexOf(this.shown);
    const next = { ArrowRight: Math.min(last, at + 1), ArrowLeft: at < 0 ? last : Math.max(0, at - 1), Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.show(this.steps[next]);
  }

  draw() {
    const { low, high, last } = this.range;
    const words = this.curves.map(({ name, points }) => say("runs.compare.ends", { run: name, change: points.length ? signed(points[points.length - 1][1]) : "" })).join("; ");
    const drawing = svg("svg", { viewBox: `0 0 ${this.width} ${HEIGHT_PX}`, width: this.width, height: HEIGHT_PX, role: "img", "aria-label": say("runs.compare.label", { curves: words }) });
    for (const percent of [low, (low + high) / 2, high]) {
      drawing.append(
        svg("line", { class: "zero", x1: LEFT, x2: this.width - RIGHT, y1: this.y(percent), y2: this.y(percent) }),
        svg("text", { class: "tick", x: LEFT - 5, y: this.y(percent) + 3, "text-anchor": "end" }, percent === 0 ? say("panel.base") : signed(percent)),
      );
    }
    for (const step of [0, Math.round(last / 2), last]) {
      drawing.append(svg("text", { class: "tick", x: this.x(step), y: HEIGHT_PX - 5, "text-anchor": step === last ? "end" : step ? "middle" : "start" }, String(step)));
    }
    drawing.append(this.pointer);
    this.curves.forEach(({ name, points, chosen_step: chosen }, i) => {
      const line = svg("path", { d: path(points, (step) => this.x(step), (percent) => this.y(percent)) });
      line.setAttribute("style", `stroke: ${colour(i)}`);
      line.append(svg("title", {}, name));
      drawing.append(line);
      const at = points.find(([step]) => step === chosen);
      if (!at) return;
      const dot = svg("circle", { cx: this.x(at[0]), cy: this.y(at[1]), r: 4 });
      dot.setAttribute("style", `fill: ${colour(i)}`);
      drawing.append(dot);
    });
    this.root.replaceChildren(drawing);
  }
}
