// @ts-check
/**
 * The sidebar's list of runs: search, open, compare. One run's own page is in runs_details.mjs, several runs' in runs_compare.mjs.
 * What is chosen and searched lives here and not in the page, which the host drops when another tab is opened.
 */

import { addStylesheet, element } from "./elements.mjs";
import { MESSAGES } from "./feed.mjs";
import { addSidebarTab, getJson, onMessage, toast } from "./host.mjs";
import { comparisonOf } from "./runs_compare.mjs";
import { RunDetails } from "./runs_details.mjs";
import { found, size } from "./runs_list.mjs";
import { moveByKeys, rowOf, tabStop } from "./runs_rows.mjs";
import { setting } from "./settings.mjs";
import { say, sayCounted } from "./words.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */

addStylesheet("runs.css");

const REFRESH_INTERVAL_MS = 2000; // of the list while a run goes on
const POLL_MS = 5000; // how often it is looked whether the list is due

class RunsTab {
  constructor() {
    /** @type {HTMLElement | null} */
    this.root = null;
    /** @type {RunSummary[] | null} null until they were read */
    this.runs = null;
    this.sizeBytes = this.trashBytes = 0;
    this.problem = "";
    this.search = "";
    this.scrolled = 0;
    /** @type {Set<string>} */
    this.selected = new Set();
    /** @type {string | null} the run that is open; "" for the comparison; null for the list */
    this.open = null;
    /** @type {RunDetails | null} its page */
    this.details = null;
    /** @type {string | null} the run that was open last */
    this.left = null;
    this.asked = 0;
    this.timer = 0;
    this.readAt = 0;
    this.drawn = "";
  }

  /** @param {HTMLElement} root */
  fill(root) {
    this.root = root;
    root.style.height = "100%";
    this.draw(); // what was known before, while it is read anew
    this.refresh();
  }

  empty() {
    this.root = this.details = null;
  }

  async refresh() {
    if (!this.root) return;
    const question = ++this.asked;
    this.readAt = Date.now();
    try {
      const answer = await getJson("/pistachio/runs");
      if (question !== this.asked) return;
      this.runs = answer?.runs ?? [];
      this.sizeBytes = answer?.size_bytes ?? 0;
      this.trashBytes = answer?.trash_bytes ?? 0;
      this.problem = "";
    } catch (error) {
      if (question !== this.asked) return;
      this.problem = say("runs.unlisted", { reason: String(error instanceof Error ? error.message : error) });
    }
    const names = new Set(this.runs?.map((run) => run.name));
    for (const name of this.selected) if (!names.has(name)) this.selected.delete(name);
    if (this.open && !names.has(this.open)) this.open = null;
    if (this.drawn === this.state()) return;
    const run = this.runs?.find(({ name }) => name === this.open);
    if (run && this.details?.run.name === run.name && this.details.isUnreadable === (run.status === "unreadable")) {
      this.drawn = this.state();
      this.details.update(run);
      return;
    }
    const focusAgain = this.focused();
    this.draw();
    focusAgain();
  }

  /** For runs that something other than this page trains. */
  refreshWhenDue() {
    const every = setting("Pistachio.Runs.RefreshSeconds");
    if (every && this.root && this.open === null && !document.hidden && Date.now() - this.readAt >= every * 1000) this.refresh();
  }

  /** @returns {() => void} puts the focus back on the same part of a list that was drawn anew */
  focused() {
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    if (!before || this.open !== null || !this.root?.contains(before)) return () => {};
    const run = /** @type {HTMLElement | null} */ (before.closest(".run"))?.dataset.run;
    const among = () => {
      const rows = /** @type {HTMLElement[]} */ ([...(this.root?.querySelectorAll(".run") ?? [])]);
      const place = run === undefined ? this.root?.querySelector(".top") : rows.find((row) => row.dataset.run === run);
      return /** @type {HTMLElement[]} */ ([...(place?.querySelectorAll("input, button") ?? [])]);
    };
    const at = among().indexOf(before);
    const caret = before instanceof HTMLInputElement && before.type === "search" ? before.selectionStart : null;
    return () => {
      const after = among()[at];
      after?.focus();
      if (caret !== null && after instanceof HTMLInputElement) after.setSelectionRange(caret, caret);
    };
  }

  /** While a run goes on, not with each of its events. */
  refreshSoon() {
    if (this.timer || !this.root) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.refresh();
    }, REFRESH_INTERVAL_MS);
  }

  /** Of what is shown: a page that would be the same is left alone, with its focus and its place. */
  state() {
    const shown = this.open ? this.runs?.filter(({ name }) => name === this.open) : this.open === "" ? [] : this.runs;
    return JSON.stringify([this.open, this.problem, shown, this.trashBytes]);
  }

  /** @param {string | null} name */
  show(name) {
    this.left = this.open ?? this.left;
    this.open = name;
    this.draw();
    this.focusFirst();
  }

  /** The heading of a page; the run in the list that was open last. */
  focusFirst() {
    const [list, heading] = ["ul.list", "h3"].map((part) => /** @type {HTMLElement | null | undefined} */ (this.root?.querySelector(part)));
    (list ? tabStop(list, this.left) : heading)?.focus();
  }

  draw() {
    if (!this.root) return;
    this.drawn = this.state();
    const page = element("div", { className: "pistachio-runs" });
    const run = this.open ? this.runs?.find(({ name }) => name === this.open) : undefined;
    this.details = run ? new RunDetails(run, { back: () => this.show(null), changed: (name) => this.changed(name) }) : null;
    if (this.details) page.append(this.details.root);
    else if (this.open === "") page.append(comparisonOf([...this.selected], () => this.show(null)));
    this.root.replaceChildren(page);
    if (!run && this.open !== "") this.drawList(page);
  }

  /** @param {string | null} name of the run as it is called now; null where it is gone */
  async changed(name) {
    this.open = name;
    await this.refresh();
    this.focusFirst(); // the pressed button is gone
  }

  /** Of a run that is trained now. @param {string} kind @param {any} data */
  receive(kind, data) {
    this.details?.receive(kind, data);
    if (kind === "eval") this.refreshSoon();
    if (kind === "finished") this.refresh();
  }

  /** What came meanwhile was lost. */
  reconnected() {
    this.details?.feed.reload();
    this.refresh();
  }

  /** @param {HTMLElement} page */
  drawList(page) {
    const runs = this.runs ?? [];
    const search = element("input", { type: "search", value: this.search, placeholder: say("runs.search"), ariaLabel: say("runs.search") });
    const compare = element("button", { textContent: say("runs.compare"), onclick: () => this.show("") });
    const again = element("button", { className: "again", title: say("runs.again"), ariaLabel: say("runs.again"), onclick: () => this.refresh() }, element("i", "pi pi-refresh"));
    const list = element("ul", { className: "list", role: "list", ariaLabel: say("runs.list") });
    const nothing = element("div", "nothing quiet");
    const total = element("div", { className: "quiet total", role: "status" });
    const problem = element("div", { className: "problem", role: "alert", textContent: this.problem, hidden: !this.problem });
    const drawSelection = () => {
      compare.disabled = this.selected.size < 2;
      compare.title = say(compare.disabled ? "runs.compare.none" : "runs.compare.title");
    };
    /** @type {import("./runs_rows.mjs").Doing} */
    const doing = {
      open: (run) => this.show(run.name),
      isTicked: (run) => this.selected.has(run.name),
      tick: (run, isTicked) => {
        if (isTicked) this.selected.add(run.name);
        else this.selected.delete(run.name);
        drawSelection();
      },
      copied: (trigger) => toast("success", say("runs.copied", { trigger })),
    };
    const drawRows = () => {
      const shown = found(runs, this.search), now = new Date();
      list.replaceChildren(...shown.map((run) => rowOf(run, doing, now)));
      tabStop(list, this.left);
      list.hidden = !shown.length;
      nothing.hidden = shown.length > 0 || Boolean(this.problem && !runs.length);
      nothing.textContent = say(this.runs === null ? "runs.reading" : runs.length ? "runs.none.found" : "runs.none");
      const values = { size: size(this.sizeBytes) };
      const words = !runs.length ? "" : shown.length < runs.length
        ? sayCounted("runs.found", runs.length, { ...values, found: shown.length }) : sayCounted("runs.total", runs.length, values);
      total.textContent = words && this.trashBytes ? say("runs.trash", { total: words, size: size(this.trashBytes) }) : words;
    };
    search.oninput = () => {
      this.search = search.value;
      this.scrolled = 0;
      drawRows();
    };
    list.onscroll = () => { this.scrolled = list.scrollTop; };
    moveByKeys(list);
    page.append(element("div", "top", search, compare, again), problem, list, nothing, total);
    drawRows();
    drawSelection();
    list.scrollTop = this.scrolled;
  }
}

const tab = new RunsTab();
addSidebarTab(
  { id: "pistachio-runs", title: "Pistachio", tooltip: say("runs.tab"), icon: "pi pi-chart-line" },
  (root) => tab.fill(root),
  () => tab.empty(),
);
for (const [message, kind] of Object.entries(MESSAGES)) onMessage(message, (data) => tab.receive(kind, data));
for (const message of ["execution_interrupted", "execution_error"]) onMessage(message, () => tab.refresh());
onMessage("reconnected", () => tab.reconnected());
window.setInterval(() => tab.refreshWhenDue(), POLL_MS);
