// @ts-check
/**
 * The rows of the list of runs, and moving in them by the keyboard: the list is one stop of Tab, and the arrows go on from there.
 * Knows no server.
 */

import { copyText } from "./clipboard.mjs";
import { element } from "./elements.mjs";
import { sparkline } from "./lines.mjs";
import { base, change, size, status, verdict, when } from "./runs_list.mjs";
import { say, spoken } from "./words.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */

/**
 * @typedef {object} Doing what a row may do
 * @property {(run: RunSummary) => void} open
 * @property {(run: RunSummary, isTicked: boolean) => void} tick
 * @property {(run: RunSummary) => boolean} isTicked
 * @property {(trigger: string) => void} copied
 */

/** @param {RunSummary} run @param {Doing} doing @param {Date} now */
export function rowOf(run, doing, now) {
  const tick = element("input", { type: "checkbox", className: "tick", checked: doing.isTicked(run), ariaLabel: say("runs.tick", { run: run.name }), tabIndex: -1 });
  tick.onchange = () => doing.tick(run, tick.checked);
  const name = element("button", { className: "name", textContent: run.name, title: say("runs.open", { run: run.name }), tabIndex: -1, onclick: () => doing.open(run) });
  const facts = element("div", { className: "facts quiet" });
  const moved = change(run), model = base(run), state = status(run);
  if (moved) facts.append(element("span", { className: (run.eval_delta_pct ?? 0) > 0 ? "worse" : "better", textContent: moved, title: say("runs.change.title", { step: String(run.chosen_step) }) }));
  if (model) facts.append(element("span", { className: "base", textContent: model, title: say("runs.base.title", { base: [run.base_file, run.family].filter(Boolean).join(", ") }) }));
  if (run.trigger) facts.append(triggerButton(run.trigger, doing.copied));
  const about = element("div", { className: "about quiet", textContent: `${when(run.modified, now)} · ${size(run.size_bytes)}`, title: new Date(run.modified * 1000).toLocaleString(spoken()) });
  const words = [state, verdict(run)].filter(Boolean).join(" · ");
  const row = element("li", "run", tick, name, sparkline(run.sparkline), about, facts, element("div", { className: "verdict quiet", textContent: words, title: words }));
  row.dataset.run = run.name;
  return row;
}

/** @param {string} trigger @param {(trigger: string) => void} copied */
export function triggerButton(trigger, copied) {
  const words = say("runs.copy", { trigger });
  const button = element("button", { className: "trigger", textContent: trigger, title: words, ariaLabel: words, tabIndex: -1 });
  button.onclick = async () => {
    await copyText(trigger);
    copied(trigger);
  };
  return button;
}

/** Up and Down go to the same part of another row, Left and Right to another part of it. @param {HTMLElement} list */
export function moveByKeys(list) {
  const parts = (/** @type {Element | null | undefined} */ row) => /** @type {HTMLElement[]} */ ([...(row?.querySelectorAll("input, button") ?? [])]);
  const enter = (/** @type {HTMLElement} */ part) => {
    for (const each of list.querySelectorAll('[tabindex="0"]')) /** @type {HTMLElement} */ (each).tabIndex = -1;
    part.tabIndex = 0;
  };
  list.addEventListener("focusin", (event) => enter(/** @type {HTMLElement} */ (event.target)));
  list.addEventListener("keydown", (event) => {
    const row = /** @type {HTMLElement} */ (event.target).closest(".run");
    if (!row) return;
    const here = parts(row), at = here.indexOf(/** @type {HTMLElement} */ (event.target));
    const beside = { ArrowLeft: here[at - 1], ArrowRight: here[at + 1] }[event.key];
    const other = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: list.firstElementChild, End: list.lastElementChild }[event.key];
    const there = beside ?? parts(other)[Math.min(at, parts(other).length - 1)];
    if (!there) return;
    event.preventDefault(); // the page would scroll
    event.stopPropagation();
    there.focus();
    there.scrollIntoView({ block: "nearest" });
  });
}

/** The row that Tab comes to. @param {HTMLElement} list @param {string | null} run or the first one */
export function tabStop(list, run) {
  const rows = /** @type {HTMLElement[]} */ ([...list.querySelectorAll(".run")]);
  const name = /** @type {HTMLElement | null | undefined} */ ((rows.find((row) => row.dataset.run === run) ?? rows[0])?.querySelector(".name"));
  if (name) name.tabIndex = 0;
  return name ?? null;
}
