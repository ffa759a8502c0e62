// @ts-check
/**
 * A run's steps that have samples, as what a person chooses among: its number, its loss, its verdict, its pictures at equal seeds.
 * Plain data and words: knows no page and no server.
 */

import { fromServer, signed } from "./history.mjs";
import { rowsOf } from "./samples.mjs";
import { say } from "./words.mjs";

/**
 * @typedef {object} Candidate one step with samples
 * @property {number} step
 * @property {(import("./history.mjs").Picture | null)[]} pictures one a row; null where the row has none at this step
 * @property {boolean} isKept as a checkpoint, so that it can be installed
 * @property {"base" | "chosen" | "tied" | ""} mark
 * @property {string} loss in words; empty for the base
 * @property {string} change the loss as a number alone
 * @property {string} words all of it in a line
 */

const MARKS = /** @type {const} */ ({ base: "checkpoints.base", chosen: "checkpoints.chosen", tied: "checkpoints.tied", yours: "checkpoints.yours" });

/** @param {any} details the answer of GET /pistachio/runs/{name}/history or of GET /pistachio/runs/{name}, with `checkpoints` of the run's summary */
export function candidatesOf(details) {
  const history = fromServer(details);
  const { rows } = rowsOf(history.samples);
  const [first, last] = history.tied ?? [Infinity, -Infinity];
  const steps = [...new Set(history.samples.map(({ step }) => step))].sort((a, b) => a - b);
  /** @type {Candidate[]} */
  const candidates = steps.map((step) => {
    const measured = history.evaluations.find((evaluation) => evaluation.step === step);
    /** @type {Candidate["mark"]} */
    const mark = step === 0 ? "base" : step === history.chosenStep ? "chosen" : step >= first && step <= last ? "tied" : "";
    const loss = step === 0 ? "" : measured ? say("checkpoints.loss.of", { change: signed(measured.percent), margin: measured.margin.toFixed(1) }) : say("checkpoints.loss.none");
    const change = step > 0 && measured ? `${signed(measured.percent)} ± ${measured.margin.toFixed(1)}` : "";
    const candidate = { step, change, pictures: rows.map(({ pictures }) => pictures.get(step) ?? null), isKept: (details.checkpoints ?? []).includes(step), mark, loss, words: "" };
    return { ...candidate, words: wordsOf(candidate, details.override_step ?? details.report?.override?.step ?? null) };
  });
  return { candidates, rows, chosenStep: history.chosenStep };
}

/** What is shown first: the chosen step, or the one of the others that is nearest to it. @param {Candidate[]} candidates @param {number | null} chosenStep */
export function firstShown(candidates, chosenStep) {
  const apart = (/** @type {Candidate} */ { step }) => (chosenStep === null ? -step : Math.abs(step - chosenStep));
  return candidates.reduce((best, candidate, i) => (candidate.step > 0 && (candidates[best].step === 0 || apart(candidate) < apart(candidates[best])) ? i : best), 0);
}

/** @param {Pick<Candidate, "step" | "loss" | "mark">} candidate @param {number | null} override the step that a person took instead */
export function wordsOf({ step, loss, mark }, override) {
  const name = say("checkpoints.step.of", { step: String(step) });
  return [name, loss, mark && say(MARKS[mark]), step === override ? say(MARKS.yours) : ""].filter(Boolean).join(" · ");
}
