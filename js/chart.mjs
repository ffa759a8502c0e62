// @ts-check
/**
 * Draws a run's curve into an SVG element: the held-out loss with its error, the training pictures' loss where it was
 * measured, and the training loss faintly behind them. Colours come from panel.css.
 */

import { signed } from "./history.mjs";
import { svg as shape } from "./lines.mjs";

const MARGIN = { left: 44, right: 14, top: 12, bottom: 20 };

/**
 * @typedef {object} View what of the run is shown, and how
 * @property {[number, number] | null} steps first and last step; null for all
 * @property {boolean} isLog equal shares of the loss are equally high
 * @property {number | null} hovered step under the pointer
 *
 * @typedef {object} Frame
 * @property {number} first step
 * @property {number} last step
 * @property {number} low percent
 * @property {number} high percent
 * @property {number} right
 * @property {number} bottom
 * @property {(step: number) => number} x
 * @property {(percent: number) => number} y
 */

/** @param {number} span @param {number} wanted number of ticks */
function niceStep(span, wanted) {
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
}

/** @param {[number, number][]} points */
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** @param {import("./history.mjs").History} history @param {View} view @param {number} width @param {number} height @returns {Frame} */
export function frameOf(history, view, width, height) {
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const [first, last] = view.steps ?? [0, Math.max(history.numSteps, history.step, 1)];
  const inside = (/** @type {{step: number}} */ { step }) => step >= first && step <= last;
  const shown = history.evaluations.filter(inside);
  const values = [...shown.flatMap(({ percent, margin }) => [percent - margin, percent + margin]), ...history.trained.filter(inside).map(({ percent }) => percent)];
  const { low, high } = range(values, view.steps !== null);
  const scale = view.isLog ? (/** @type {number} */ percent) => Math.log(Math.max(0.001, 1 + percent / 100)) : (/** @type {number} */ percent) => percent;
  return {
    first, last, low, high, right, bottom,
    x: (step) => MARGIN.left + ((right - MARGIN.left) * (step - first)) / (last - first),
    y: (percent) => bottom - ((bottom - MARGIN.top) * (scale(percent) - scale(low))) / (scale(high) - scale(low)),
  };
}

/** @param {Frame} frame @param {number} x of the drawing @returns {number} */
export function stepAt(frame, x) {
  const share = (x - MARGIN.left) / (frame.right - MARGIN.left);
  return frame.first + Math.min(1, Math.max(0, share)) * (frame.last - frame.first);
}

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {View} view @param {number} width @param {number} height */
export function drawChart(svg, history, view, width, height) {
  const frame = frameOf(history, view, width, height);
  const clip = shape("g", { class: "curves" });
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawTied(svg, history, frame);
  drawGrid(svg, frame);
  svg.append(clip);
  drawTraining(clip, history, frame);
  if (history.chosenStep !== null && history.chosenStep >= frame.first && history.chosenStep <= frame.last) {
    const at = frame.x(history.chosenStep);
    clip.append(shape("line", { class: "chosen-line", x1: at, x2: at, y1: MARGIN.top, y2: frame.bottom }));
  }
  drawTrained(clip, history, frame);
  drawHeldOut(clip, history, frame);
  if (view.hovered !== null) drawHovered(svg, history, frame, view.hovered);
}

/** @param {number[]} values @param {boolean} isZoomed then the base line may lie outside */
function range(values, isZoomed) {
  let low = Math.min(...(isZoomed && values.length ? [] : [0]), ...values);
  let high = Math.max(...(isZoomed && values.length ? [] : [0]), ...values);
  const span = Math.max(high - low, isZoomed ? 0.1 : 1);
  low -= low < 0 || isZoomed ? 0.08 * span : span;
  high += high > 0 || isZoomed ? 0.08 * span : 0.12 * span;
  return { low: Math.max(low, -99.5), high };
}

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {Frame} frame */
function drawTied(svg, history, { x, right, bottom }) {
  if (!history.tied || history.tied[0] === history.tied[1]) return;
  const from = Math.max(MARGIN.left, x(history.tied[0])), to = Math.min(right, x(history.tied[1]));
  if (to <= from) return;
  const band = shape("rect", { class: "tied", x: from, y: MARGIN.top, width: to - from, height: bottom - MARGIN.top });
  band.append(shape("title", {}, `Steps ${history.tied[0]} to ${history.tied[1]} are as good as the chosen one, as far as these pictures can tell`));
  svg.append(band);
}

/** @param {SVGSVGElement} svg @param {Frame} frame */
function drawGrid(svg, { low, high, first, last, x, y, right, bottom }) {
  const step = niceStep(high - low, 3);
  for (let percent = Math.ceil(low / step) * step; percent <= high + 1e-9; percent += step) {
    const isBase = Math.abs(percent) < step / 1000;
    const at = y(percent);
    svg.append(
      shape("line", { class: isBase ? "base" : "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }),
      shape("text", { class: "tick", x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, isBase ? "base" : signed(percent)),
    );
  }
  const stepTick = Math.max(1, niceStep(last - first, 4));
  for (let at = Math.ceil(first / stepTick) * stepTick; at <= last; at += stepTick) {
    svg.append(shape("text", { class: "tick", x: x(at), y: bottom + 14, "text-anchor": "middle" }, String(at)));
  }
}

/** @param {Element} group @param {import("./history.mjs").History} history @param {Frame} frame */
function drawTraining(group, history, { first, last, x, bottom }) {
  const shown = history.training.filter(({ step }) => step >= first && step <= last);
  if (shown.length < 2) return;
  const losses = shown.map((point) => point.loss);
  const low = Math.min(...losses);
  const span = Math.max(...losses) - low || 1;
  const y = (/** @type {number} */ loss) => bottom - 6 - ((bottom - MARGIN.top - 12) * (loss - low)) / span;
  group.append(shape("path", { class: "training", d: path(shown.map(({ step, loss }) => [x(step), y(loss)])) }));
}

/** @param {Element} group @param {import("./history.mjs").History} history @param {Frame} frame */
function drawTrained(group, history, { first, last, x, y }) {
  const shown = history.trained.filter(({ step }) => step >= first && step <= last);
  if (shown.length > 1) group.append(shape("path", { class: "trained", d: path(shown.map(({ step, percent }) => [x(step), y(percent)])) }));
}

/** @param {Element} group @param {import("./history.mjs").History} history @param {Frame} frame */
function drawHeldOut(group, history, { first, last, x, y }) {
  const points = history.evaluations.filter(({ step }) => step >= first && step <= last);
  if (!points.length) return;
  const upper = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent + margin)]));
  const lower = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent - margin)])).reverse();
  group.append(
    shape("path", { class: "band", d: `${path([...upper, ...lower])}Z` }),
    shape("path", { class: "held-out", d: path(points.map(({ step, percent }) => [x(step), y(percent)])) }),
  );
  for (const { step, percent } of points) {
    const isChosen = step === history.chosenStep;
    group.append(shape("circle", { class: isChosen ? "dot chosen" : "dot", cx: x(step), cy: y(percent), r: isChosen ? 5 : 2.5 }));
  }
}

/** What was measured nearest to a step, in words. @param {import("./history.mjs").History} history @param {number} step */
export function readout(history, step) {
  const nearest = (/** @type {any[]} */ points) => points.reduce((best, point) => (!best || Math.abs(point.step - step) < Math.abs(best.step - step) ? point : best), null);
  const evaluation = nearest(history.evaluations);
  if (!evaluation) return null;
  const trained = history.trained.find((point) => point.step === evaluation.step);
  const loss = nearest(history.training);
  const parts = [`step ${evaluation.step}`, `held out ${signed(evaluation.percent)} ± ${evaluation.margin.toFixed(1)}`];
  if (trained) parts.push(`training pictures ${signed(trained.percent)}`, `gap ${(evaluation.percent - trained.percent).toFixed(1)} points`);
  else if (loss) parts.push(`training loss ${loss.loss.toPrecision(3)}`);
  return { step: evaluation.step, words: parts.join(" · ") };
}

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {Frame} frame @param {number} step */
function drawHovered(svg, history, frame, step) {
  const found = readout(history, step);
  if (!found || found.step < frame.first || found.step > frame.last) return;
  const at = frame.x(found.step);
  svg.append(
    shape("line", { class: "pointer", x1: at, x2: at, y1: MARGIN.top, y2: frame.bottom }),
    shape("text", { class: "readout", x: frame.right, y: MARGIN.top + 2, "text-anchor": "end" }, found.words),
  );
}
