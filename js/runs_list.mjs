// @ts-check
/**
 * What the list of runs shows, as plain data and words: which runs a search finds, and how one is told in a line.
 * Knows no page and no server.
 */

import { signed } from "./history.mjs";
import { say, sayNumber, spoken, translated } from "./words.mjs";

/**
 * @typedef {object} RunSummary as GET /pistachio/runs gives it
 * @property {string} name
 * @property {string} status finished, running, interrupted, new or unreadable
 * @property {string} family
 * @property {string} base_file of the base model; empty where nobody knows it
 * @property {string} trigger
 * @property {number} num_pictures
 * @property {number} num_steps
 * @property {number} step
 * @property {number | null} chosen_step
 * @property {boolean} [is_refit] trained on all pictures, as long as another run chose: it goes on no further
 * @property {number | null} override_step that a person took instead
 * @property {number[]} checkpoints
 * @property {string | null} verdict in English
 * @property {import("./words.mjs").Message | null} [verdict_message] which sentence that is; none of a run of an older version
 * @property {number | null} eval_delta_pct
 * @property {[number, number][]} sparkline
 * @property {number} modified seconds since 1970
 * @property {number} size_bytes
 */

const UNITS = ["B", "kB", "MB", "GB", "TB"];
/** @type {Record<string, "runs.status.running" | "runs.status.interrupted" | "runs.status.new">} */
const STATUS = { running: "runs.status.running", interrupted: "runs.status.interrupted", new: "runs.status.new" };

/** Every word must stand in the name, the trigger word, the base, the status or the verdict. @param {RunSummary[]} runs @param {string} text */
export function found(runs, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const hay = [run.name, run.trigger, run.family, run.base_file, run.status, status(run), verdict(run)].join(" ").toLowerCase();
    return words.every((word) => hay.includes(word));
  });
}

/** @param {number} bytes */
export function size(bytes) {
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  const digits = value >= 100 || unit === 0 ? 0 : 1;
  return `${sayNumber(value, { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${UNITS[unit]}`;
}

/** @param {number} seconds since 1970 @param {Date} now */
export function when(seconds, now) {
  const date = new Date(seconds * 1000);
  const time = date.toLocaleTimeString(spoken(), { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === now.toDateString()) return time;
  return date.toLocaleDateString(spoken(), { day: "numeric", month: "short", ...(date.getFullYear() === now.getFullYear() ? {} : { year: "numeric" }) });
}

/** @param {RunSummary} run the base model: its file where that is known, else its family */
export function base(run) {
  return run.base_file.replace(/\.[a-z]+$/i, "") || run.family;
}

/** @param {RunSummary} run empty for one that is finished */
export function status(run) {
  const key = STATUS[run.status];
  return key ? say(key, { step: String(run.step), steps: String(run.num_steps) }) : run.status === "unreadable" ? say("runs.status.unreadable") : "";
}

/** In the user's language. @param {Pick<RunSummary, "verdict" | "verdict_message">} run */
export function verdict(run) {
  return translated(run.verdict ?? "", run.verdict_message);
}

/** @param {RunSummary} run */
export function change(run) {
  return run.eval_delta_pct === null ? "" : signed(run.eval_delta_pct);
}
