// @ts-check
/** A run's memory as a bar and a line of words: what is used now, its peak, and what the plan predicted. */

import { element } from "./elements.mjs";
import { say } from "./words.mjs";

const GB = 1e9; // as cards are sold

/** @typedef {import("./history.mjs").Memory} Memory */

export class MemoryLine {
  constructor() {
    this.used = element("div", "used");
    this.peak = element("div", "peak");
    this.planned = element("div", "planned");
    this.scale = element("div", { className: "scale", ariaHidden: "true" }, this.used, this.peak, this.planned);
    this.text = element("span", "");
    this.root = element("div", { className: "memory", hidden: true }, this.scale, this.text);
    this.shown = "";
  }

  /** @param {Memory | null} memory */
  show(memory) {
    const shown = memory ? wordsOf(memory) : "";
    if (shown === this.shown) return;
    this.shown = shown;
    this.root.toggleAttribute("hidden", !memory || !shown);
    if (!memory || !shown) return;
    this.text.textContent = shown;
    this.root.title = say(memory.place === "process" ? "panel.memory.process.title" : "panel.memory.card.title");
    const isOver = Boolean(memory.place !== "process" && memory.planned_bytes && memory.peak_bytes && memory.peak_bytes > memory.planned_bytes);
    this.root.classList.toggle("over", isOver);
    const total = memory.total_bytes ?? Math.max(memory.planned_bytes ?? 0, memory.peak_bytes ?? 0);
    const place = (/** @type {number | null} */ bytes) => `${Math.min(100, (100 * (bytes ?? 0)) / (total || 1)).toFixed(1)}%`;
    this.used.style.width = place(memory.used_bytes ?? memory.peak_bytes);
    this.peak.style.left = place(memory.peak_bytes);
    this.peak.hidden = memory.peak_bytes === null;
    this.planned.style.left = place(memory.planned_bytes);
    this.planned.hidden = memory.planned_bytes === null;
  }
}

/** @param {Memory} memory @returns {string} empty where nothing is known */
export function wordsOf({ place, used_bytes: used, peak_bytes: peak, total_bytes: total, planned_bytes: planned }) {
  const parts = [];
  if (used !== null) parts.push(say(place === "process" ? "panel.memory.process" : "panel.memory.now", { size: sizeWords(used) }));
  if (peak !== null) parts.push(say("panel.memory.peak", { size: sizeWords(peak) }));
  if (planned !== null) parts.push(say(place === "process" ? "panel.memory.planned.tensors" : "panel.memory.planned", { size: sizeWords(planned) }));
  if (parts.length && total !== null) parts.push(say(place === "process" ? "panel.memory.of.ram" : place === "plan" ? "panel.memory.of.limit" : "panel.memory.of.card", { size: sizeWords(total) }));
  return parts.join(" · ");
}

/** @param {number} bytes */
export function sizeWords(bytes) {
  return bytes >= GB ? `${(bytes / GB).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}
