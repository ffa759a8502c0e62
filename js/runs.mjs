// @ts-check
/**
 * The sidebar's list of runs: search, open, compare. One run's own page is in runs_details.mjs.
 * What is chosen and searched lives here and not in the page, which the host drops when another tab is opened.
 */

import { addStylesheet, element } from "./elements.mjs";
import { addSidebarTab, getJson, onMessage, toast } from "./host.mjs";
import { COLOURS, comparison, sparkline } from "./lines.mjs";
import { detailsOf } from "./runs_details.mjs";
import { change, facts, found, size } from "./runs_list.mjs";
import { setting } from "./settings.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */

addStylesheet("runs.css");

class RunsTab {
  constructor() {
    /** @type {HTMLElement | null} */
    this.root = null;
    /** @type {RunSummary[]} */
    this.runs = [];
    this.sizeBytes = 0;
    this.search = "";
    /** @type {Set<string>} */
    this.selected = new Set();
    /** @type {string | null} the run that is open; "" for the comparison; null for the list */
    this.open = null;
    this.asked = 0;
  }

  /** @param {HTMLElement} root */
  fill(root) {
    this.root = root;
    root.style.height = "100%";
    this.refresh();
  }

  empty() {
    this.root = null;
  }

  async refresh() {
    if (!this.root) return;
    const question = ++this.asked;
    try {
      const answer = await getJson("/pistachio/runs");
      if (question !== this.asked) return;
      this.runs = answer?.runs ?? [];
      this.sizeBytes = answer?.size_bytes ?? 0;
    } catch (error) {
      toast("error", "The runs can't be listed", String(error instanceof Error ? error.message : error));
    }
    const names = new Set(this.runs.map((run) => run.name));
    for (const name of this.selected) if (!names.has(name)) this.selected.delete(name);
    if (this.open && !names.has(this.open)) this.open = null;
    this.draw();
  }

  /** @param {string | null} name */
  show(name) {
    this.open = name;
    this.draw();
  }

  draw() {
    if (!this.root) return;
    const page = element("div", { className: "pistachio-runs" });
    this.root.replaceChildren(page);
    if (this.open === null) this.drawList(page);
    else if (this.open === "") this.drawComparison(page);
    else {
      const run = /** @type {RunSummary} */ (this.runs.find(({ name }) => name === this.open));
      page.append(detailsOf(run, { back: () => this.show(null), changed: (name) => { this.open = name; return this.refresh(); } }));
    }
  }

  /** @param {HTMLElement} page */
  drawList(page) {
    const search = element("input", { type: "search", value: this.search, placeholder: "Search runs", ariaLabel: "Search runs" });
    const compare = element("button", { textContent: "Compare" });
    const again = element("button", { textContent: "⟳", title: "Read the list again", ariaLabel: "Read the list again", onclick: () => this.refresh() });
    const list = element("ul", { className: "list" });
    const total = element("div", { className: "quiet" });
    compare.onclick = () => this.show("");
    const drawRows = () => {
      const shown = found(this.runs, this.search);
      list.replaceChildren(...shown.map((run) => this.row(run, drawSelection)));
      const words = this.runs.length ? "No run has these words." : "Train LoRA writes its runs here.";
      if (!shown.length) list.append(element("li", { className: "quiet", textContent: words }));
      total.textContent = `${this.runs.length} ${this.runs.length === 1 ? "run" : "runs"}, ${size(this.sizeBytes)} on the disk`;
    };
    const drawSelection = () => {
      compare.disabled = this.selected.size < 2;
      compare.title = compare.disabled ? "Tick two runs or more" : "Draw their curves on one chart";
    };
    search.oninput = () => {
      this.search = search.value;
      drawRows();
    };
    page.append(element("div", { className: "top" }, search, compare, again), list, total);
    drawRows();
    drawSelection();
  }

  /** @param {RunSummary} run @param {() => void} selectionChanged */
  row(run, selectionChanged) {
    const tick = element("input", { type: "checkbox", checked: this.selected.has(run.name), ariaLabel: `Compare ${run.name}` });
    tick.onchange = () => {
      if (tick.checked) this.selected.add(run.name);
      else this.selected.delete(run.name);
      selectionChanged();
    };
    const name = element("button", { className: "name", textContent: run.name, title: `Open ${run.name}`, onclick: () => this.show(run.name) });
    const moved = element("span", { className: (run.eval_delta_pct ?? 0) > 0 ? "worse" : "better", textContent: change(run) });
    const line = element("div", { className: "facts quiet", textContent: facts(run, new Date()) });
    if (moved.textContent) line.prepend(moved, " · ");
    const row = element("li", { className: "run" }, tick, name, sparkline(run.sparkline), line);
    if (run.verdict) row.append(element("div", { className: "verdict quiet", textContent: run.verdict, title: run.verdict }));
    return row;
  }

  /** @param {HTMLElement} page */
  async drawComparison(page) {
    const back = element("button", { textContent: "← All runs", onclick: () => this.show(null) });
    const body = element("div", { className: "details" }, element("div", { className: "quiet", textContent: "Reading the curves" }));
    page.append(element("div", { className: "top" }, back), body);
    const query = [...this.selected].map((name) => `run=${encodeURIComponent(name)}`).join("&");
    try {
      const { problem, curves } = await getJson(`/pistachio/compare?${query}`);
      if (problem) body.replaceChildren(element("div", { className: "problem", textContent: problem }));
      else {
        const keys = curves.map((/** @type {{name: string}} */ { name }, /** @type {number} */ i) => {
          const key = element("div", { className: "key", textContent: name });
          key.style.setProperty("--colour", COLOURS[i % COLOURS.length]);
          return key;
        });
        const words = "Held-out loss against the base, measured on the same pictures at the same noise levels. The dot is the chosen step.";
        body.replaceChildren(element("div", { className: "compared" }, comparison(curves)), ...keys, element("div", { className: "quiet", textContent: words }));
      }
    } catch (error) {
      body.replaceChildren(element("div", { className: "problem", textContent: String(error instanceof Error ? error.message : error) }));
    }
  }
}

const POLL_MS = 5000; // how often it is looked whether the list is due

const tab = new RunsTab();
let read = Date.now();
window.setInterval(() => {
  const every = setting("Pistachio.Runs.RefreshSeconds");
  const isBusy = !tab.root || tab.open !== null || document.hidden || tab.root.contains(document.activeElement);
  if (!every || isBusy || Date.now() - read < every * 1000) return;
  read = Date.now();
  tab.refresh();
}, POLL_MS);
addSidebarTab(
  { id: "pistachio-runs", title: "Pistachio", tooltip: "Pistachio: your training runs", icon: "pi pi-chart-line" },
  (root) => tab.fill(root),
  () => tab.empty(),
);
for (const message of ["pistachio.finished", "execution_interrupted", "execution_error", "reconnected"]) onMessage(message, () => tab.refresh());
