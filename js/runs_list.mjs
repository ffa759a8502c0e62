// @ts-check
/**
 * What the list of runs shows, as plain data and words: which runs a search finds, and how one is told in a line.
 * Knows no page and no server.
 */

import { signed } from "./history.mjs";

/**
 * @typedef {object} RunSummary as GET /pistachio/runs gives it
 * @property {string} name
 * @property {string} status finished, running, interrupted, new or unreadable
 * @property {string} family
 * @property {string} trigger
 * @property {number} num_pictures
 * @property {number} num_steps
 * @property {number} step
 * @property {number | null} chosen_step
 * @property {number[]} checkpoints
 * @property {string | null} verdict
 * @property {number | null} eval_delta_pct
 * @property {[number, number][]} sparkline
 * @property {number} modified seconds since 1970
 * @property {number} size_bytes
 */

/** Every word must stand in the name, the trigger word, the family, the status or the verdict. @param {RunSummary[]} runs @param {string} text */
export function found(runs, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const hay = [run.name, run.trigger, run.family, run.status, run.verdict].join(" ").toLowerCase();
    return words.every((word) => hay.includes(word));
  });
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** @param {number} seconds since 1970 @param {Date} now */
export function when(seconds, now) {
  const date = new Date(seconds * 1000);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === now.toDateString()) return time;
  return date.toLocaleDateString([], { day: "numeric", month: "short", ...(date.getFullYear() === now.getFullYear() ? {} : { year: "numeric" }) });
}

/** @param {RunSummary} run @param {Date} now */
export function facts(run, now) {
  const trained = run.status === "finished" ? "" : run.status === "unreadable" ? "unreadable" : `${run.status}, step ${run.step} of ${run.num_steps}`;
  return [run.family, run.trigger, when(run.modified, now), trained].filter(Boolean).join(" · ");
}

/** @param {RunSummary} run */
export function change(run) {
  return run.eval_delta_pct === null ? "" : signed(run.eval_delta_pct);
}
