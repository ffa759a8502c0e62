// @ts-check
/**
 * Draws a run's curve into an SVG element: the held-out loss with its error, and the training loss faintly behind it.
 * Colours come from panel.css.
 */

import { signed } from "./history.mjs";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 44, right: 14, top: 12, bottom: 20 };

/** @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] */
function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {number} span @param {number} wanted number of ticks */
function niceStep(span, wanted) {
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
}

/** @param {[number, number][]} points */
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {number} width @param {number} height */
export function drawChart(svg, history, width, height) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const lastStep = Math.max(history.numSteps, history.step, 1);
  const x = (/** @type {number} */ step) => MARGIN.left + ((right - MARGIN.left) * step) / lastStep;

  const { low, high } = range(history.evaluations);
  const y = (/** @type {number} */ percent) => bottom - ((bottom - MARGIN.top) * (percent - low)) / (high - low);

  drawGrid(svg, { low, high, lastStep, x, y, right, bottom });
  drawTraining(svg, history, x, bottom);
  if (history.chosenStep !== null) {
    const at = x(history.chosenStep);
    svg.append(shape("line", { class: "chosen-line", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
  }
  drawHeldOut(svg, history, x, y);
}

/** @param {import("./history.mjs").Evaluation[]} evaluations */
function range(evaluations) {
  const values = evaluations.flatMap(({ percent, margin }) => [percent - margin, percent + margin]);
  let low = Math.min(0, ...values);
  let high = Math.max(0, ...values);
  const span = Math.max(high - low, 1);
  low -= low < 0 ? 0.08 * span : span;
  high += high > 0 ? 0.08 * span : 0.12 * span;
  return { low, high };
}

/** @param {SVGSVGElement} svg @param {any} frame */
function drawGrid(svg, { low, high, lastStep, x, y, right, bottom }) {
  const step = niceStep(high - low, 3);
  for (let percent = Math.ceil(low / step) * step; percent <= high + 1e-9; percent += step) {
    const isBase = Math.abs(percent) < step / 1000;
    const at = y(percent);
    svg.append(
      shape("line", { class: isBase ? "base" : "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }),
      shape("text", { class: "tick", x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, isBase ? "base" : signed(percent)),
    );
  }
  const stepTick = Math.max(1, niceStep(lastStep, 4));
  for (let at = 0; at <= lastStep; at += stepTick) {
    svg.append(shape("text", { class: "tick", x: x(at), y: bottom + 14, "text-anchor": "middle" }, String(at)));
  }
}

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {(step: number) => number} x @param {number} bottom */
function drawTraining(svg, history, x, bottom) {
  if (history.training.length < 2) return;
  const losses = history.training.map((point) => point.loss);
  const low = Math.min(...losses);
  const span = Math.max(...losses) - low || 1;
  const y = (/** @type {number} */ loss) => bottom - 6 - ((bottom - MARGIN.top - 12) * (loss - low)) / span;
  svg.append(shape("path", { class: "training", d: path(history.training.map(({ step, loss }) => [x(step), y(loss)])) }));
}

/** @param {SVGSVGElement} svg @param {import("./history.mjs").History} history @param {(step: number) => number} x @param {(percent: number) => number} y */
function drawHeldOut(svg, history, x, y) {
  const points = history.evaluations;
  if (!points.length) return;
  const upper = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent + margin)]));
  const lower = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent - margin)])).reverse();
  svg.append(
    shape("path", { class: "band", d: `${path([...upper, ...lower])}Z` }),
    shape("path", { class: "held-out", d: path(points.map(({ step, percent }) => [x(step), y(percent)])) }),
  );
  for (const { step, percent, margin } of points) {
    const isChosen = step === history.chosenStep;
    const dot = shape("circle", { class: isChosen ? "dot chosen" : "dot", cx: x(step), cy: y(percent), r: isChosen ? 5 : 2.5 });
    dot.append(shape("title", {}, `step ${step}: ${signed(percent)} ± ${margin.toFixed(1)}`));
    svg.append(dot);
  }
}
