// @ts-check
/**
 * One run's page in the sidebar: its curve, its words, its checkpoints, and what may be done with it.
 */

import { openCheckpoints } from "./checkpoints.mjs";
import { continueRun } from "./continue.mjs";
import { element } from "./elements.mjs";
import { asked, confirmed, getJson, nodesOnCanvas, postJson, toast } from "./host.mjs";
import { fromServer, signed } from "./history.mjs";
import { Panel } from "./panel.mjs";
import { facts, size } from "./runs_list.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */
/** @typedef {{back: () => void, changed: (name: string | null) => Promise<void>}} Places */

const TRAIN = "PistachioTrainLora";

/** @param {RunSummary} run @param {Places} places */
export function detailsOf(run, places) {
  const panel = new Panel();
  const table = element("table", {});
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
  };
  if (run.trigger) button("Copy trigger", `Copies "${run.trigger}"`, () => navigator.clipboard.writeText(run.trigger));
  button("Continue", "Puts this run at continue_run of Train LoRA on the canvas", () => continueOnCanvas(run));
  button("Rename", "Gives the run's folder another name; files in models/loras keep theirs", () => rename(run, places));
  button("Open folder", "Opens the run's folder on the machine that runs ComfyUI", () => act(run, "show_folder", {}));
  button("Delete", "Moves the run to the folder .trash beside the runs", () => trash(run, places));
  const compare = element("button", { textContent: "Compare checkpoints", title: "The same prompts and seeds at each step", hidden: true });
  buttons.prepend(compare);
  const line = [facts(run, new Date()), `${run.num_pictures} pictures`, size(run.size_bytes)].filter(Boolean).join(" · ");
  const page = element(
    "div", { className: "details" },
    element("div", { className: "top" }, element("button", { textContent: "← All runs", onclick: places.back })),
    element("h3", { textContent: run.name }), element("div", { className: "quiet", textContent: line }), buttons, panel.root, table,
  );
  fillIn(run, panel, table, compare).catch((error) => toast("error", run.name, String(error.message)));
  return page;
}

/** @param {RunSummary} run @param {Panel} panel @param {HTMLTableElement} table @param {HTMLButtonElement} compare */
async function fillIn(run, panel, table, compare) {
  const details = await getJson(`/pistachio/runs/${encodeURIComponent(run.name)}`);
  if (!details) return;
  const history = fromServer(details);
  panel.show(history);
  if (details.samples?.length > 1) compare.hidden = false;
  compare.onclick = () => openCheckpoints(details, async (step) => { await installed(run, step); });
  const rows = run.checkpoints.map((step) => {
    const measured = history.evaluations.find((evaluation) => evaluation.step === step);
    const install = element("button", { textContent: "Install", title: `Puts step ${step} into models/loras` });
    install.ariaLabel = `Install step ${step}`;
    install.onclick = () => installStep(run, step, install);
    const isChosen = step === run.chosen_step;
    return element(
      "tr", { className: isChosen ? "chosen" : "" }, element("td", { textContent: isChosen ? `${step}, chosen` : String(step) }),
      element("td", { textContent: measured ? `${signed(measured.percent)} ± ${measured.margin.toFixed(1)}` : "" }), element("td", {}, install),
    );
  });
  table.append(element("tr", {}, ...["Step", "Held-out loss", ""].map((text) => element("th", { textContent: text }))), ...rows);
}

/** @param {RunSummary} run @param {string} action @param {object} content @returns {Promise<any>} */
async function act(run, action, content) {
  const { status, body } = await postJson(`/pistachio/runs/${encodeURIComponent(run.name)}/${action}`, content);
  if (status >= 400) throw new Error(body?.error ?? `HTTP ${status}`);
  return body;
}

/** @param {RunSummary} run @param {number} step @param {HTMLButtonElement} button */
async function installStep(run, step, button) {
  button.disabled = true;
  if (await installed(run, step)) button.textContent = "Installed";
  else button.disabled = false;
}

/** Says how it went. @param {RunSummary} run @param {number} step */
async function installed(run, step) {
  try {
    const { lora_name: file } = await act(run, "install", { step });
    toast("success", `Step ${step} is installed`, `models/loras/${file}. Press R on the canvas to see it in LoRA loaders.`);
    return true;
  } catch (error) {
    toast("error", `Step ${step} can't be installed`, String(error instanceof Error ? error.message : error));
    return false;
  }
}

/** @param {RunSummary} run @param {Places} places */
async function rename(run, places) {
  const name = (await asked("Rename run", "Another name for the run's folder.", run.name))?.trim();
  if (!name || name === run.name) return;
  await act(run, "rename", { name });
  await places.changed(name);
}

/** @param {RunSummary} run @param {Places} places */
async function trash(run, places) {
  const words = `Move "${run.name}" (${size(run.size_bytes)}) to the folder .trash beside the runs? LoRA files in models/loras stay.`;
  if (!(await confirmed("Delete run", words))) return;
  const { folder } = await act(run, "trash", {});
  toast("info", `${run.name} is in the trash`, folder);
  await places.changed(null);
}

/** @param {RunSummary} run */
function continueOnCanvas(run) {
  const train = nodesOnCanvas().find((node) => node.type === TRAIN);
  if (!train) throw new Error("There is no Train LoRA on the canvas. Open the workflow that the run was trained with.");
  continueRun(train, run.name);
  toast("success", `${run.name} will be continued`, "Queue the graph; set num_steps on Train LoRA for another total than half as much again.");
}
