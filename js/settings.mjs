// @ts-check
/**
 * The pack's settings in the host's dialog, below Pistachio. `setting` is read where it matters, each time it matters,
 * so that a change is there at once.
 */

import { addSettings, hostSetting } from "./host.mjs";

/** What each is until somebody changes it. */
const DEFAULTS = {
  "Pistachio.Chart.LogScale": false,
  "Pistachio.Chart.Smoothing": 0,
  "Pistachio.Runs.TellWhenEnded": true,
  "Pistachio.Runs.ConfirmStop": false,
  "Pistachio.Runs.RefreshSeconds": 30,
};

/** @typedef {keyof typeof DEFAULTS} SettingId */

/** Id, group and title, tooltip, type; in English, which the host replaces by its language's. @type {[SettingId, string[], string, string, object][]} */
const SETTINGS = [
  ["Pistachio.Chart.LogScale", ["Chart", "Log scale"], "Draw new charts with a log scale", "Equal shares of the loss are equally high. The button log on each chart still switches it.", { type: "boolean" }],
  ["Pistachio.Chart.Smoothing", ["Chart", "Smoothing"], "Smooth the training loss further", "0 draws it as it is recorded, 0.99 hardly follows it. The held-out curve is never smoothed.", { type: "slider", attrs: { min: 0, max: 0.99, step: 0.01 } }],
  ["Pistachio.Runs.TellWhenEnded", ["Runs", "Tell when ended"], "Say when a run has ended", "A notice with the verdict, whatever workflow is open.", { type: "boolean" }],
  ["Pistachio.Runs.ConfirmStop", ["Runs", "Confirm stop"], "Ask before a run is stopped", "For Stop and keep, on the node and as a command.", { type: "boolean" }],
  ["Pistachio.Runs.RefreshSeconds", ["Runs", "Refresh seconds"], "Read the list of runs again every so many seconds", "For runs that something other than this page trains. 0: only when this page hears of one.", { type: "slider", attrs: { min: 0, max: 300, step: 10 } }],
];

addSettings(SETTINGS.map(([id, [group, title], name, tooltip, type]) => (
  { id, category: ["Pistachio", group, title], name, tooltip, defaultValue: DEFAULTS[id], .../** @type {{type: string}} */ (type) }
)));

/** @template {SettingId} Id @param {Id} id @returns {typeof DEFAULTS[Id]} */
export function setting(id) {
  const value = hostSetting(id);
  return /** @type {typeof DEFAULTS[Id]} */ (typeof value === typeof DEFAULTS[id] ? value : DEFAULTS[id]);
}
