// @ts-check
/**
 * Draws a run's curve into SVG elements: the held-out loss with its error, the training pictures' loss where it was
 * measured, and the training loss faintly behind them. What did not change is left as it is: a new step touches one path,
 * the pointer a layer of its own. Colours come from panel.css.
 */

import { signed } from "./history.mjs";
import { svg as shape } from "./lines.mjs";
import { say } from "./words.mjs";

const TICK_PX = 60; // a number of steps and some room
const MARGIN = { left: 44, right: 14, top: 12, bottom: 20 };

/**
 * @typedef {import("./history.mjs").History} History
 * @typedef {import("./trace.mjs").Trace} Trace
 *
 * @typedef {object} View what of the run is shown, and how
 * @property {[number, number] | null} steps first and last step; null for all
 * @property {boolean} isLog equal shares of the loss are equally high
 * @property {number} [smoothing] of the training loss: the share of what was before in each column, below 1
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

/** @param {History} history @param {View} view @param {number} width @param {number} height @returns {Frame} */
export function frameOf(history, view, width, height) {
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const [first, last] = view.steps ?? [0, Math.max(history.numSteps, history.step, 1)];
  let least = Infinity, most = -Infinity;
  const see = (/** @type {number} */ percent) => {
    least = Math.min(least, percent);
    most = Math.max(most, percent);
  };
  for (const { step, percent, margin } of history.evaluations) {
    if (step < first || step > last) continue;
    see(percent - margin);
    see(percent + margin);
  }
  for (const { step, percent } of history.trained) if (step >= first && step <= last) see(percent);
  const { low, high } = range(least, most, view.steps !== null);
  const scale = view.isLog ? (/** @type {number} */ percent) => Math.log(Math.max(0.001, 1 + percent / 100)) : (/** @type {number} */ percent) => percent;
  return {
    first, last, low, high, right, bottom,
    x: (step) => MARGIN.left + ((right - MARGIN.left) * (step - first)) / (last - first),
    y: (percent) => bottom - ((bottom - MARGIN.top) * (scale(percent) - scale(low))) / (scale(high) - scale(low)),
  };
}

/** In percent. @param {number} least of the numbers that are shown @param {number} most @param {boolean} isZoomed then the base line may lie outside */
function range(least, most, isZoomed) {
  const isFree = isZoomed && least <= most;
  let low = isFree ? least : Math.min(0, least), high = isFree ? most : Math.max(0, most);
  const span = Math.max(high - low, isZoomed ? 0.1 : 1);
  low -= low < 0 || isZoomed ? 0.08 * span : span;
  high += high > 0 || isZoomed ? 0.08 * span : 0.12 * span;
  return { low: Math.max(low, -99.5), high };
}

/** @param {Frame} frame @param {number} x of the drawing @returns {number} */
export function stepAt(frame, x) {
  const share = (x - MARGIN.left) / (frame.right - MARGIN.left);
  return frame.first + Math.min(1, Math.max(0, share)) * (frame.last - frame.first);
}

/**
 * The training loss as a path: from each column's end that is nearer to the line, so that it does not jump back and forth.
 * @param {Trace} trace @param {Frame} frame @param {number} [smoothing]
 */
export function trainingPath(trace, frame, smoothing = 0) {
  const width = Math.max(2, Math.round(frame.right - MARGIN.left));
  const columns = trace.columns(frame.first, frame.last, width);
  const { at, lows, highs, low, high } = smoothing ? smoothed(columns, smoothing) : columns;
  const span = high - low || 1, room = frame.bottom - MARGIN.top - 12, bottom = frame.bottom - 6;
  const scale = (frame.right - MARGIN.left) / Math.max(1, width - 1);
  let drawn = "", before = NaN;
  for (let i = 0; i < at.length; i++) {
    const x = (MARGIN.left + at[i] * scale).toFixed(1);
    const fromLow = !(Math.abs(highs[i] - before) < Math.abs(lows[i] - before));
    const one = fromLow ? lows[i] : highs[i], other = fromLow ? highs[i] : lows[i];
    drawn += `${drawn ? "L" : "M"}${x} ${(bottom - (room * (one - low)) / span).toFixed(1)}`;
    if (other !== one) drawn += `L${x} ${(bottom - (room * (other - low)) / span).toFixed(1)}`;
    before = other;
  }
  return at.length > 1 || lows[0] !== highs[0] ? drawn : "";
}

/** One number a column that follows the middle of it slowly. @param {import("./trace.mjs").Columns} columns @param {number} share of what was before @returns {import("./trace.mjs").Columns} */
function smoothed({ at, lows, highs }, share) {
  let value = NaN;
  const values = lows.map((low, i) => {
    const middle = (low + highs[i]) / 2;
    return (value = Number.isNaN(value) ? middle : share * value + (1 - share) * middle);
  });
  return { at, lows: values, highs: values, low: Math.min(...values), high: Math.max(...values) };
}

/** What was measured nearest to a step, in words. @param {History} history @param {number} step @param {Trace} trace */
export function readout(history, step, trace = history.training) {
  const evaluation = nearest(history.evaluations, step);
  const at = evaluation?.step ?? Math.round(step);
  const loss = trace.at(at);
  if (!evaluation && !loss) return null;
  const parts = [say("panel.read.step", { step: String(at) })];
  if (evaluation) {
    parts.push(say("panel.read.held_out", { change: signed(evaluation.percent), margin: evaluation.margin.toFixed(1) }));
    const trained = history.trained.find((point) => point.step === evaluation.step);
    if (trained) {
      const gap = (evaluation.percent - trained.percent).toFixed(1);
      parts.push(say("panel.read.trained", { change: signed(trained.percent) }), say("panel.read.gap", { gap }));
    }
  }
  if (loss) parts.push(say("panel.read.loss", { loss: loss.value.toPrecision(3) }));
  return { step: at, words: parts.join(" · ") };
}

/** @template {{step: number}} T @param {T[]} points @param {number} step @returns {T | null} */
export function nearest(points, step) {
  let best = null;
  for (const point of points) if (!best || Math.abs(point.step - step) < Math.abs(best.step - step)) best = point;
  return best;
}

export class Chart {
  constructor() {
    this.svg = /** @type {SVGSVGElement} */ (shape("svg", { role: "img", class: "curve" }));
    this.over = /** @type {SVGSVGElement} */ (shape("svg", { class: "over", "aria-hidden": "true" }));
    this.back = shape("g", {});
    this.front = shape("g", { class: "curves" });
    this.training = shape("path", { class: "training" });
    this.pointer = shape("line", { class: "pointer", visibility: "hidden" });
    this.svg.append(this.back, this.training, this.front);
    this.over.append(this.pointer);
    this.drawn = "";
    this.drawnTraining = "";
    /** @type {Frame | null} */
    this.frame = null;
  }

  /** @param {History} history @param {View} view @param {Trace} trace of the training loss, in the detail that the view asks for @param {number} width @param {number} height */
  draw(history, view, trace, width, height) {
    const frame = frameOf(history, view, width, height);
    this.frame = frame;
    const shown = [history.run, history.sitting, history.revision, history.chosenStep, frame.first, frame.last, view.isLog, view.smoothing, width, height].join(" ");
    if (shown !== this.drawn) {
      this.drawn = shown;
      for (const svg of [this.svg, this.over]) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("aria-label", described(history));
      this.back.replaceChildren(...tied(history, frame), ...grid(frame));
      this.front.replaceChildren(...chosen(history, frame), ...trained(history, frame), ...heldOut(history, frame));
    }
    const shownTraining = `${shown} ${trace.stride} ${trace.count} ${trace.revision}`;
    if (shownTraining === this.drawnTraining) return;
    this.drawnTraining = shownTraining;
    this.training.setAttribute("d", trainingPath(trace, frame, view.smoothing));
  }

  /** Only the line under the pointer moves. @param {number | null} step */
  point(step) {
    const { frame } = this;
    const isShown = frame !== null && step !== null && step >= frame.first && step <= frame.last;
    this.pointer.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (!isShown) return;
    const at = frame.x(step).toFixed(1);
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: MARGIN.top, y2: frame.bottom })) this.pointer.setAttribute(name, String(value));
  }
}

/** For who can't see it. @param {History} history */
function described(history) {
  const last = history.evaluations.at(-1);
  return last ? say("panel.chart.label", { change: signed(last.percent), step: String(last.step) }) : say("panel.chart.empty");
}

/** @param {History} history @param {Frame} frame */
function tied(history, { x, right, bottom }) {
  if (!history.tied || history.tied[0] === history.tied[1]) return [];
  const from = Math.max(MARGIN.left, x(history.tied[0])), to = Math.min(right, x(history.tied[1]));
  if (to <= from) return [];
  const band = shape("rect", { class: "tied", x: from, y: MARGIN.top, width: to - from, height: bottom - MARGIN.top });
  band.append(shape("title", {}, say("panel.tied", { first: String(history.tied[0]), last: String(history.tied[1]) })));
  return [band];
}

/** @param {Frame} frame */
function grid({ low, high, first, last, x, y, right, bottom }) {
  const lines = [];
  const step = niceStep(high - low, 3);
  for (let percent = Math.ceil(low / step) * step; percent <= high + 1e-9; percent += step) {
    const isBase = Math.abs(percent) < step / 1000;
    const at = y(percent);
    lines.push(
      shape("line", { class: isBase ? "base" : "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }),
      shape("text", { class: "tick", x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, isBase ? say("panel.base") : signed(percent)),
    );
  }
  const stepTick = Math.max(1, niceStep(last - first, Math.min(4, Math.max(1, (right - MARGIN.left) / TICK_PX))));
  for (let at = Math.ceil(first / stepTick) * stepTick; at <= last; at += stepTick) {
    lines.push(shape("text", { class: "tick", x: x(at), y: bottom + 14, "text-anchor": "middle" }, String(at)));
  }
  return lines;
}

/** @param {History} history @param {Frame} frame */
function chosen({ chosenStep }, { first, last, x, bottom }) {
  if (chosenStep === null || chosenStep < first || chosenStep > last) return [];
  return [shape("line", { class: "chosen-line", x1: x(chosenStep), x2: x(chosenStep), y1: MARGIN.top, y2: bottom })];
}

/** @param {History} history @param {Frame} frame */
function trained(history, { first, last, x, y }) {
  const shown = history.trained.filter(({ step }) => step >= first && step <= last);
  return shown.length > 1 ? [shape("path", { class: "trained", d: path(shown.map(({ step, percent }) => [x(step), y(percent)])) })] : [];
}

/** @param {History} history @param {Frame} frame */
function heldOut(history, { first, last, x, y }) {
  const points = history.evaluations.filter(({ step }) => step >= first && step <= last);
  if (!points.length) return [];
  const upper = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent + margin)]));
  const lower = points.map(({ step, percent, margin }) => /** @type {[number, number]} */ ([x(step), y(percent - margin)])).reverse();
  return [
    shape("path", { class: "band", d: `${path([...upper, ...lower])}Z` }),
    shape("path", { class: "held-out", d: path(points.map(({ step, percent }) => [x(step), y(percent)])) }),
    ...points.map(({ step, percent }) => {
      const isChosen = step === history.chosenStep;
      return shape("circle", { class: isChosen ? "dot chosen" : "dot", cx: x(step), cy: y(percent), r: isChosen ? 5 : 2.5 });
    }),
  ];
}
