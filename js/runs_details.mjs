// @ts-check
/**
 * One run's page in the sidebar: its curve, its words, its checkpoints, and what may be done with it.
 */

import { openCheckpoints } from "./checkpoints.mjs";
import { continueRun, placeRun } from "./continue.mjs";
import { element } from "./elements.mjs";
import { asked, confirmed, getJson, nodesOnCanvas, postJson, toast } from "./host.mjs";
import { fromServer, signed } from "./history.mjs";
import { Panel } from "./panel.mjs";
import { base, size, status, verdict, when } from "./runs_list.mjs";
import { triggerButton } from "./runs_rows.mjs";
import { say } from "./words.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */
/** @typedef {{back: () => void, changed: (name: string | null) => Promise<void>}} Places */

const TRAIN = "PistachioTrainLora";

/** @param {RunSummary} run @param {Places} places */
export function detailsOf(run, places) {
  const panel = new Panel();
  const buttons = element("div", { className: "buttons" });
  const button = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => unknown} */ action) => {
    const made = element("button", { textContent: text, title });
    made.onclick = async () => {
      made.disabled = true;
      try {
        await action();
      } catch (error) {
        toast("error", `${run.name}: ${text}`, String(error instanceof Error ? error.message : error));
      }
      made.disabled = false;
    };
    buttons.append(made);
    return made;
  };
  const compare = element("button", { className: "first", textContent: say("checkpoints.compare"), title: say("checkpoints.compare.title"), hidden: true });
  buttons.append(compare);
  button(say("runs.continue"), say("runs.continue.title"), () => continueOnCanvas(run));
  button(say("runs.place"), say("runs.place.title"), () => placeRun(run.name));
  button(say("runs.rename"), say("runs.rename.title"), () => rename(run, places));
  button(say("runs.folder"), say("runs.folder.title"), () => act(run, "show_folder", {}));
  button(say("runs.delete"), say("runs.delete.title"), () => trash(run, places)).classList.add("delete");
  const table = element("table", { className: "checkpoints", hidden: !run.checkpoints.length });
  table.createCaption().textContent = say("checkpoints.heading");
  const page = element(
    "div", { className: "details" },
    element("div", { className: "top" }, element("button", { className: "back", textContent: say("runs.back"), onclick: places.back })),
    element("div", "scrolled", element("h3", { textContent: run.name, tabIndex: -1 }), factsOf(run), buttons, panel.root, table),
  );
  if (run.status === "unreadable") panel.root.replaceWith(element("div", { className: "problem", role: "alert", textContent: verdict(run) }));
  else fillIn(run, panel, table, compare).catch((error) => toast("error", run.name, String(error.message)));
  return page;
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

/** @param {RunSummary} run @param {Panel} panel @param {HTMLTableElement} table @param {HTMLButtonElement} compare */
async function fillIn(run, panel, table, compare) {
  const answer = await getJson(`/pistachio/runs/${encodeURIComponent(run.name)}/history`);
  if (!answer) return;
  const history = fromServer(answer);
  panel.show(history);
  panel.root.ariaLabel = run.name; // another may stand on the canvas
  panel.root.classList.toggle("with-samples", history.samples.length > 0);
  if (history.samples.length > 1) compare.hidden = false;
  const take = async (/** @type {number} */ step) => {
    const isTaken = await installed(run, step);
    if (isTaken) {
      run.override_step = step === run.chosen_step ? null : step;
      drawRows();
    }
    return isTaken;
  };
  compare.onclick = () => openCheckpoints({ ...run, ...answer }, take);
  const drawRows = () => {
    const rows = run.checkpoints.map((step) => rowOf(run, history, step, take));
    const heads = [say("checkpoints.step"), say("checkpoints.loss")].map((text) => element("th", { textContent: text, scope: "col" }));
    table.tBodies[0]?.remove();
    table.createTBody().append(element("tr", {}, ...heads, element("td")), ...rows);
  };
  drawRows();
}

/** @param {RunSummary} run @param {import("./history.mjs").History} history @param {number} step @param {(step: number) => Promise<boolean>} take */
function rowOf(run, history, step, take) {
  const measured = history.evaluations.find((evaluation) => evaluation.step === step);
  const button = element("button", { textContent: say("checkpoints.install"), title: say("checkpoints.install.title", { step: String(step) }), ariaLabel: say("checkpoints.install.label", { step: String(step) }) });
  button.onclick = async () => {
    button.disabled = true;
    await take(step);
    button.disabled = false;
  };
  const [first, last] = history.tied ?? [Infinity, -Infinity];
  const isTied = step >= first && step <= last;
  const mark = step === run.override_step ? say("checkpoints.yours") : step === run.chosen_step ? say("checkpoints.chosen") : isTied ? say("checkpoints.tied.short") : "";
  const name = element("th", { scope: "row", textContent: String(step) });
  if (mark) name.append(element("span", { className: "mark", textContent: mark, title: isTied ? say("checkpoints.tied") : "" }));
  return element(
    "tr", { className: step === run.chosen_step ? "chosen" : "" }, name,
    element("td", { textContent: measured ? `${signed(measured.percent)} ± ${measured.margin.toFixed(1)}` : "" }), element("td", {}, button),
  );
}

/** @param {RunSummary} run @param {string} action @param {object} content @returns {Promise<any>} */
async function act(run, action, content) {
  const path = `/pistachio/runs/${encodeURIComponent(run.name)}/${action}`;
  const { status: code, body } = await postJson(path, content);
  if (code >= 400) throw new Error(body?.error ?? say("error.http", { path, status: String(code) }));
  return body;
}

/** Says how it went. @param {RunSummary} run @param {number} step */
async function installed(run, step) {
  try {
    const { lora_name: file } = await act(run, "install", { step });
    toast("success", say("checkpoints.installed", { step: String(step) }), say("checkpoints.installed.where", { file }));
    return true;
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
async function trash(run, places) {
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
