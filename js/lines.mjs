// @ts-check
/**
 * Small drawings of curves as SVG: a run's line in the list, and several runs' lines on one chart.
 * A curve is [step, percent] or [step, percent, margin] points.
 */

import { signed } from "./history.mjs";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240, HEIGHT = 180, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 20;
const SPARK_WIDTH = 84, SPARK_HEIGHT = 30;
// Told apart in light and dark themes, and by people who see red and green alike (Okabe and Ito).
export const COLOURS = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `var(--pistachio-curve-${number})`); // of theme.css

/** @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] */
export function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** @param {number[][]} points @param {(step: number) => number} x @param {(percent: number) => number} y */
function path(points, x, y) {
  return points.map(([step, percent], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(percent).toFixed(1)}`).join("");
}

/** @param {number[][]} points */
function extent(points) {
  const values = points.map(([, percent]) => percent);
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  return { low, high: high === low ? low + 1 : high, last: Math.max(1, ...points.map(([step]) => step)) };
}

/** @param {number[][]} points */
export function sparkline(points) {
  const drawing = svg("svg", { viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`, "aria-hidden": "true" });
  if (points.length < 2) return drawing;
  const { low, high, last } = extent(points);
  const x = (/** @type {number} */ step) => 2 + ((SPARK_WIDTH - 4) * step) / last;
  const y = (/** @type {number} */ percent) => SPARK_HEIGHT - 3 - ((SPARK_HEIGHT - 6) * (percent - low)) / (high - low);
  drawing.append(svg("line", { class: "zero", x1: 2, x2: SPARK_WIDTH - 2, y1: y(0), y2: y(0) }), svg("path", { class: "line", d: path(points, x, y) }));
  return drawing;
}

/** @param {{name: string, points: number[][], chosen_step: number | null}[]} curves */
export function comparison(curves) {
  const all = curves.flatMap((curve) => curve.points);
  const words = curves.map(({ name, points }) => `${name} ends at ${points.length ? signed(points[points.length - 1][1]) : "no number"}`).join("; ");
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Held-out loss against the base: ${words}` });
  const { low, high, last } = extent(all);
  const x = (/** @type {number} */ step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / last;
  const y = (/** @type {number} */ percent) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * (percent - low)) / (high - low);
  for (const percent of [low, (low + high) / 2, high]) {
    drawing.append(
      svg("line", { class: "zero", x1: LEFT, x2: WIDTH - RIGHT, y1: y(percent), y2: y(percent) }),
      svg("text", { class: "tick", x: LEFT - 5, y: y(percent) + 3, "text-anchor": "end" }, percent === 0 ? "base" : signed(percent)),
    );
  }
  for (const step of [0, Math.round(last / 2), last]) drawing.append(svg("text", { class: "tick", x: x(step), y: HEIGHT - 5, "text-anchor": step === last ? "end" : step ? "middle" : "start" }, String(step)));
  curves.forEach(({ name, points, chosen_step: chosen }, i) => {
    const colour = COLOURS[i % COLOURS.length];
    const line = svg("path", { d: path(points, x, y), stroke: colour });
    line.append(svg("title", {}, name));
    drawing.append(line);
    const at = points.find(([step]) => step === chosen);
    if (at) drawing.append(svg("circle", { cx: x(at[0]), cy: y(at[1]), r: 4, fill: colour }));
  });
  return drawing;
}
