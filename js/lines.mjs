// @ts-check
/**
 * Small drawings of curves as SVG: what they are made of, and a run's line in the list.
 * A curve is [step, percent] points, or longer ones.
 */

const SVG = "http://www.w3.org/2000/svg";
const SPARK_WIDTH = 84, SPARK_HEIGHT = 30;

/** @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] */
export function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** @param {number[][]} points @param {(step: number) => number} x @param {(percent: number) => number} y */
export function path(points, x, y) {
  return points.map(([step, percent], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(percent).toFixed(1)}`).join("");
}

/** The base, 0 percent at step 0, is always within. @param {number[][]} points */
export function extent(points) {
  let low = 0, high = 0, last = 1;
  for (const [step, percent] of points) {
    low = Math.min(low, percent);
    high = Math.max(high, percent);
    last = Math.max(last, step);
  }
  return { low, high: high === low ? low + 1 : high, last };
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
