// @ts-check
/**
 * One run's page in the sidebar: its curve, its words, its checkpoints, and what may be done with it.
 */

import { openCheckpoints } from "./checkpoints.mjs";
import { continueRun, placeRun } from "./continue.mjs";
import { element } from "./elements.mjs";
import { Feed } from "./feed.mjs";
import { asked, confirmed, getJson, nodesOnCanvas, postJson, toast } from "./host.mjs";
import { signed } from "./history.mjs";
import { Panel } from "./panel.mjs";
import { base, size, status, verdict, when } from "./runs_list.mjs";
import { triggerButton } from "./runs_rows.mjs";
import { say } from "./words.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */
/** @typedef {{back: () => void, changed: (name: string | null) => Promise<void>}} Places */

const TRAIN = "PistachioTrainLora";

export class RunDetails {
  /** @param {RunSummary} run @param {Places} places */
  constructor(run, places) {
    this.run = run;
    this.panel = new Panel();
    this.feed = new Feed(historyOf, (history) => this.show(history), (error) => toast("error", this.run.name, String(error instanceof Error ? error.message : error)));
    this.compare = button(say("checkpoints.compare"), say("checkpoints.compare.title"), run, () => this.openCheckpoints());
    this.compare.classList.add("first");
    this.compare.hidden = true;
    const trash = button(say("runs.delete"), say("runs.delete.title"), run, () => moveToTrash(run, places));
    trash.classList.add("delete");
    const buttons = element(
      "div", { className: "buttons" }, this.compare,
      button(say("runs.continue"), say("runs.continue.title"), run, () => continueOnCanvas(run)),
      button(say("runs.place"), say("runs.place.title"), run, () => placeRun(run.name)),
      button(say("runs.rename"), say("runs.rename.title"), run, () => rename(run, places)),
      button(say("runs.folder"), say("runs.folder.title"), run, () => act(run, "show_folder", {})),
      trash,
    );
    this.facts = factsOf(run);
    this.table = element("table", { className: "checkpoints", hidden: true });
    this.table.createCaption().textContent = say("checkpoints.heading");
    this.drawn = ""; // the rows of the table
    this.isUnreadable = run.status === "unreadable";
    const curve = this.isUnreadable ? element("div", { className: "problem", role: "alert", textContent: verdict(run) }) : this.panel.root;
    this.root = element(
      "div", { className: "details" },
      element("div", { className: "top" }, element("button", { className: "back", textContent: say("runs.back"), onclick: places.back })),
      element("div", "scrolled", element("h3", { textContent: run.name, tabIndex: -1 }), this.facts, buttons, curve, this.table),
    );
    this.panel.root.ariaLabel = run.name; // another may stand on the canvas
    if (!this.isUnreadable) this.feed.load(run.name);
  }

  /** What the list knows by now; the page stays, with its focus and its zoom. @param {RunSummary} run of the same name */
  update(run) {
    const before = this.run;
    this.run = run;
    if (run.status !== before.status) this.feed.reload(); // nobody tells of a run that was interrupted
    const isFocused = this.facts.contains(document.activeElement), facts = factsOf(run);
    this.facts.replaceWith(facts);
    this.facts = facts;
    if (isFocused) facts.querySelector("button")?.focus();
    this.drawRows();
  }

  /** @param {string} kind @param {any} data of a message */
  receive(kind, data) {
    if (data.run === this.run.name && !this.isUnreadable) this.feed.receive(kind, data);
  }

  /** @param {import("./history.mjs").History | null} history */
  show(history) {
    if (!history) return;
    this.panel.show(history);
    this.panel.root.classList.toggle("with-samples", history.samples.length > 0);
    this.compare.hidden = history.samples.length < 2;
    this.drawRows();
  }

  /** Only where they changed: a message comes for each few steps. */
  drawRows() {
    const { run, table } = this, { history } = this.feed;
    if (!history) return;
    const now = JSON.stringify([run.checkpoints, run.override_step, run.chosen_step, history.tied, history.evaluations]);
    if (now === this.drawn) return;
    this.drawn = now;
    const focused = /** @type {HTMLElement | null} */ (table.contains(document.activeElement) ? document.activeElement : null)?.ariaLabel;
    const rows = run.checkpoints.map((step) => rowOf(run, history, step, (taken) => this.take(taken)));
    const heads = [say("checkpoints.step"), say("checkpoints.loss")].map((text) => element("th", { textContent: text, scope: "col" }));
    table.tBodies[0]?.remove();
    table.createTBody().append(element("tr", {}, ...heads, element("td")), ...rows);
    table.hidden = !rows.length;
    if (focused) [...table.querySelectorAll("button")].find(({ ariaLabel }) => ariaLabel === focused)?.focus();
  }

  /** @param {number} step @returns {Promise<boolean>} whether the report has it as a person's choice */
  async take(step) {
    const { run } = this;
    const isRecorded = await installed(run, step);
    if (isRecorded) {
      run.override_step = step === run.chosen_step ? null : step;
      this.drawRows();
    }
    return isRecorded;
  }

  async openCheckpoints() {
    const answer = await historyOf(this.run.name); // with the samples made by now
    if (answer) openCheckpoints({ ...this.run, ...answer }, (step) => this.take(step));
  }
}

/** @param {string} run */
function historyOf(run) {
  return getJson(`/pistachio/runs/${encodeURIComponent(run)}/history`);
}

/** @param {string} text @param {string} title @param {RunSummary} run @param {() => unknown} action not twice at once; its error is told */
function button(text, title, run, action) {
  const made = element("button", { textContent: text, title });
  let isBusy = false; // not `disabled`, which loses the focus
  made.onclick = async () => {
    if (isBusy) return;
    isBusy = true;
    try {
      await action();
    } catch (error) {
      toast("error", `${run.name}: ${text}`, String(error instanceof Error ? error.message : error));
    }
    isBusy = false;
    if (made.isConnected && document.activeElement === document.body) made.focus(); // a dialog had it
  };
  return made;
}

/** @param {RunSummary} run */
function factsOf(run) {
  const list = element("dl", "about");
  const add = (/** @type {string} */ name, /** @type {(Node | string)[]} */ ...values) => list.append(element("dt", { textContent: name }), element("dd", {}, ...values));
  const model = [base(run), run.base_file ? run.family : ""].filter(Boolean).join(", ");
  if (model) add(say("runs.about.base"), model);
  if (run.trigger) {
    const trigger = triggerButton(run.trigger, (copied) => toast("success", say("runs.copied", { trigger: copied })));
    trigger.tabIndex = 0;
    add(say("runs.about.trigger"), trigger);
  }
  add(say("runs.about.trained"), [when(run.modified, new Date()), status(run) || say("runs.about.steps", { steps: String(run.step) })].join(" · "));
  if (run.num_pictures) add(say("runs.about.pictures"), String(run.num_pictures));
  add(say("runs.about.disk"), size(run.size_bytes));
  return list;
}

/** @param {RunSummary} run @param {import("./history.mjs").History} history @param {number} step @param {(step: number) => Promise<boolean>} take */
function rowOf(run, history, step, take) {
  const measured = history.evaluations.find((evaluation) => evaluation.step === step);
  const install = button(say("checkpoints.install"), say("checkpoints.install.title", { step: String(step) }), run, () => take(step));
  install.ariaLabel = say("checkpoints.install.label", { step: String(step) });
  const [first, last] = history.tied ?? [Infinity, -Infinity];
  const isTied = step >= first && step <= last;
  const mark = step === run.override_step ? say("checkpoints.yours") : step === run.chosen_step ? say("checkpoints.chosen") : isTied ? say("checkpoints.tied.short") : "";
  const name = element("th", { scope: "row", textContent: String(step) });
  if (mark) name.append(element("span", { className: "mark", textContent: mark, title: isTied ? say("checkpoints.tied") : "" }));
  return element(
    "tr", { className: step === run.chosen_step ? "chosen" : "" }, name,
    element("td", { textContent: measured ? `${signed(measured.percent)} ± ${measured.margin.toFixed(1)}` : "" }), element("td", {}, install),
  );
}

/** @param {RunSummary} run @param {string} action @param {object} content @returns {Promise<any>} */
async function act(run, action, content) {
  const path = `/pistachio/runs/${encodeURIComponent(run.name)}/${action}`;
  const { status: code, body } = await postJson(path, content);
  if (code >= 400) throw new Error(body?.error ?? say("error.http", { path, status: String(code) }));
  return body;
}

/** Says how it went. @param {RunSummary} run @param {number} step @returns {Promise<boolean>} whether the report has it as a person's choice */
async function installed(run, step) {
  try {
    const { lora_name: file, recorded } = await act(run, "install", { step });
    toast("success", say("checkpoints.installed", { step: String(step) }), say("checkpoints.installed.where", { file }));
    return recorded;
  } catch (error) {
    toast("error", say("checkpoints.not_installed", { step: String(step) }), String(error instanceof Error ? error.message : error));
    return false;
  }
}

/** @param {RunSummary} run @param {Places} places */
async function rename(run, places) {
  const name = (await asked(say("runs.rename.ask"), say("runs.rename.words"), run.name))?.trim();
  if (!name || name === run.name) return;
  await act(run, "rename", { name });
  await places.changed(name);
}

/** @param {RunSummary} run @param {Places} places */
async function moveToTrash(run, places) {
  if (!(await confirmed(say("runs.delete.ask"), say("runs.delete.words", { run: run.name, size: size(run.size_bytes) })))) return;
  const { folder } = await act(run, "trash", {});
  toast("info", say("runs.deleted", { run: run.name }), folder);
  await places.changed(null);
}

/** @param {RunSummary} run */
function continueOnCanvas(run) {
  const train = nodesOnCanvas().find((node) => node.type === TRAIN);
  if (!train) throw new Error(say("runs.continue.no_node"));
  continueRun(train, run.name);
  toast("success", say("runs.continued", { run: run.name }), say("runs.continued.words"));
}
