// @ts-check
/**
 * A run as the panel draws it, built from the server's history or from live messages.
 * Plain data of bounded size: knows no page and no server.
 */

import { Trace, traceOf } from "./trace.mjs";
import { say, translated } from "./words.mjs";

const SPEED_SMOOTHING = 0.1; // share of the latest step

/**
 * @typedef {object} Evaluation
 * @property {number} step
 * @property {number} percent change of the held-out loss against the base
 * @property {number} margin standard error, in the same unit
 *
 * @typedef {object} Picture
 * @property {string} thumbnail what GET /pistachio/thumbnail takes
 * @property {string} prompt
 * @property {boolean} with_trigger
 * @property {number} [seed]
 *
 * @typedef {object} Samples
 * @property {number} step
 * @property {Picture[]} pictures
 *
 * @typedef {object} Memory
 * @property {string} place card, process, or plan where nothing is measured now
 * @property {number | null} used_bytes
 * @property {number | null} peak_bytes
 * @property {number | null} total_bytes
 * @property {number | null} planned_bytes
 *
 * @typedef {object} History
 * @property {string} run
 * @property {string} status new, running, interrupted or finished
 * @property {number} step
 * @property {number} numSteps
 * @property {number | null} secondsLeft
 * @property {Trace} training smoothed loss of the steps
 * @property {Evaluation[]} evaluations
 * @property {Samples[]} samples by step
 * @property {string} note in the user's language, as the verdict is
 * @property {string} verdict
 * @property {number | null} chosenStep
 * @property {boolean} isRefit trained on all pictures, as long as another run chose: it goes on no further
 * @property {[number, number] | null} tied first and last step that are as good as the chosen one
 * @property {{step: number, percent: number}[]} trained change of the loss on training pictures, in the same unit
 * @property {number | null} secondsPerStep smoothed
 * @property {string} phase what it does now, where that is not training: loading, caching, evaluating, sampling
 * @property {Memory | null} memory
 * @property {string | null} sitting of the trainer whose events it goes on with
 * @property {number} sequence number of the last of its events
 * @property {number} revision of all but the training loss: grows with each change
 */

/** @param {string} run @returns {History} */
export function emptyHistory(run) {
  return {
    run, status: "new", step: 0, numSteps: 0, secondsLeft: null, training: new Trace(), evaluations: [], samples: [], note: "", verdict: "",
    chosenStep: null, isRefit: false, tied: null, trained: [], secondsPerStep: null, phase: "", memory: null, sitting: null, sequence: 0, revision: 0,
  };
}

/** @param {any} answer of GET /pistachio/runs/{name}/history, or of GET /pistachio/runs/{name} @returns {History} */
export function fromServer(answer) {
  const history = emptyHistory(answer.name);
  if (answer.training) {
    history.training = traceOf(answer.training);
    for (const row of answer.evaluations) addEvaluation(history, row);
    for (const row of answer.probes) addProbe(history, row);
    history.note = translated(answer.note, answer.note_message);
    history.step = answer.step;
    history.numSteps = answer.num_steps;
    history.secondsPerStep = answer.seconds_per_step;
    history.memory = answer.memory;
  } else {
    history.numSteps = answer.config?.settings?.num_steps ?? 0;
    for (const row of answer.metrics ?? []) if (row.kind !== "sample") addRow(history, row);
  }
  for (const entry of answer.samples ?? []) addSamples(history, entry);
  if (answer.live) {
    history.sitting = answer.live.sitting;
    history.sequence = answer.live.sequence;
    history.phase = answer.live.phase;
    history.secondsLeft = answer.live.seconds_left;
  } else {
    history.phase = "";
    history.secondsLeft = null;
  }
  const isFinished = answer.status === "finished";
  history.status = answer.status;
  history.chosenStep = isFinished ? answer.chosen_step : null;
  history.isRefit = Boolean(answer.is_refit);
  history.verdict = isFinished ? translated(answer.verdict ?? "", answer.verdict_message) : "";
  history.tied = isFinished ? answer.tied_range ?? answer.report?.tied_range ?? null : null;
  return history;
}

/** @param {History} history @param {any} row of metrics.jsonl, or the data of a message with its kind */
export function addRow(history, row) {
  history.step = Math.max(history.step, row.step ?? 0);
  if (row.num_steps) history.numSteps = row.num_steps;
  if (row.memory) history.memory = row.memory;
  if (history.status === "new") history.status = "running";
  if (row.kind === "train") return addTraining(history, row);
  history.revision++;
  if (row.kind === "phase") history.phase = row.phase ?? "";
  else if (row.kind === "eval") addEvaluation(history, row);
  else if (row.kind === "probe") addProbe(history, row);
  else if (row.kind === "sample") addSamples(history, row);
  else if (row.kind === "note") history.note = translated(row.text ?? "", row.message);
  else if (row.kind === "finished") {
    history.status = "finished";
    history.secondsLeft = null;
    history.verdict = translated(row.verdict ?? "", row.verdict_message);
    history.chosenStep = row.chosen_step ?? null;
    history.isRefit = Boolean(row.is_refit);
    history.tied = row.tied_range ?? null;
    history.phase = "";
    // What it takes now is no news any more; how far the plan was right stays.
    const { place, peak_bytes: peak, planned_bytes: planned } = history.memory ?? {};
    history.memory = planned ? { place: "plan", used_bytes: null, peak_bytes: place === "card" ? peak ?? null : null, planned_bytes: planned, total_bytes: null } : null;
  }
}

/** @param {History} history @param {any} row one step, or the latest of several in its `rows` */
function addTraining(history, row) {
  history.step = row.step;
  history.secondsLeft = row.seconds_left ?? null;
  history.phase = "";
  for (const [step, loss, seconds] of row.rows ?? [[row.step, row.loss_ema ?? row.loss, row.seconds]]) {
    if (Number.isFinite(seconds)) {
      const before = history.secondsPerStep ?? seconds;
      history.secondsPerStep = before + SPEED_SMOOTHING * (seconds - before);
    }
    history.training.add(step, loss ?? NaN);
  }
}

/** @param {History} history @param {any} row */
function addEvaluation(history, row) {
  if (!Number.isFinite(row.loss_delta_pct)) return;
  const base = row.loss - row.loss_delta;
  put(history.evaluations, { step: row.step, percent: row.loss_delta_pct, margin: base > 0 && row.se ? (100 * row.se) / base : 0 });
  history.revision++;
}

/** @param {History} history @param {any} row */
function addProbe(history, row) {
  const first = row.train_loss - row.train_delta; // before any training
  if (!Number.isFinite(first) || first <= 0) return;
  put(history.trained, { step: row.step, percent: (100 * row.train_delta) / first });
  history.revision++;
}

/** @param {History} history @param {any} row */
function addSamples(history, row) {
  put(history.samples, { step: row.step, pictures: row.pictures ?? [] });
  history.revision++;
}

/** At the end: steps that are trained anew replace what was there. @template {{step: number}} T @param {T[]} points @param {T} point */
function put(points, point) {
  while (points.length && points[points.length - 1].step >= point.step) points.pop();
  points.push(point);
}

/**
 * Where a finished run goes on to: its planned end where it was stopped before, else by half.
 * @param {{step: number, numSteps: number}} run the step it came to, and the planned one @returns {{steps: number, isPlanned: boolean}}
 */
export function furtherSteps({ step, numSteps }) {
  const isPlanned = step < numSteps;
  return { isPlanned, steps: isPlanned ? numSteps : step + Math.ceil(step / 2) };
}

/** @param {number | null} secondsPerStep */
export function speed(secondsPerStep) {
  if (!secondsPerStep) return "";
  return secondsPerStep < 1 ? say("panel.speed.fast", { steps: twoDigits(1 / secondsPerStep) }) : say("panel.speed.slow", { seconds: twoDigits(secondsPerStep) });
}

/** @param {number} value */
const twoDigits = (value) => Number(value.toPrecision(2)); // toPrecision alone writes 120 as 1.2e+2

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return say("panel.seconds", { seconds: Math.max(0, Math.round(seconds)) });
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? say("panel.minutes", { minutes }) : say("panel.hours", { hours: Math.floor(minutes / 60), minutes: String(minutes % 60).padStart(2, "0") });
}

/** @param {number} percent */
export function signed(percent) {
  const text = Math.abs(percent) >= 10 ? Math.abs(percent).toFixed(0) : Math.abs(percent).toFixed(1);
  return `${Number(text) === 0 ? "" : percent < 0 ? "−" : "+"}${text} %`;
}
