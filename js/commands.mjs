// @ts-check
/**
 * The pack's commands: in the menu, the palette and the host's list of shortcuts, whatever is selected on the canvas.
 * Each does what a button does elsewhere; none has a way of its own.
 */

import { openCheckpoints } from "./checkpoints.mjs";
import { continueFurther, runOf } from "./continue.mjs";
import { addCommands, command, confirmed, getJson, nodesOnCanvas, onMessage, openWorkflow, postJson, toast, url } from "./host.mjs";
import { setting } from "./settings.mjs";
import { say, translated } from "./words.mjs";

/** @typedef {import("./runs_list.mjs").RunSummary} RunSummary */

const TRAIN = "PistachioTrainLora";
const MAIN_WORKFLOW = "01 Train a character in one form.app";
const PACK = new URL(".", import.meta.url).pathname.split("/").filter(Boolean).at(-1) ?? "";

/** @param {(run: RunSummary) => boolean} fits @returns {Promise<RunSummary | null>} the newest that fits */
async function newestRun(fits) {
  const { runs } = await getJson("/pistachio/runs");
  return runs.find(fits) ?? null;
}

const ASKED = /** @type {const} */ ({ evaluate: "commands.asked.evaluate", sample: "commands.asked.sample", stop: "commands.asked.stop" });

/** @param {"evaluate" | "sample" | "stop"} wish of the run that is being trained */
async function ask(wish) {
  const run = await newestRun(({ status }) => status === "running");
  if (!run) return toast("info", say("commands.no_running"));
  if (wish === "stop" && !(await mayStop(run.name))) return;
  await post(run.name, "ask", { wish });
  toast("info", run.name, say(ASKED[wish]));
}

/** Asks first where the settings say so. @param {string} run @returns {Promise<boolean>} */
export async function mayStop(run) {
  return !setting("Pistachio.Runs.ConfirmStop") || confirmed(say("commands.stop.title", { run }), say("commands.stop.question"));
}

/** @param {string} run @param {string} action @param {object} content */
async function post(run, action, content) {
  const { status, body } = await postJson(`/pistachio/runs/${encodeURIComponent(run)}/${action}`, content);
  if (status >= 400) throw new Error(body?.error ?? `HTTP ${status}`);
  return body;
}

async function compareNewest() {
  const run = await newestRun(({ checkpoints }) => checkpoints.length > 0);
  const history = run && (await getJson(`/pistachio/runs/${encodeURIComponent(run.name)}/history`));
  if (!history) return toast("info", say("commands.no_checkpoints"));
  const details = { ...run, ...history };
  if ((details.samples ?? []).length < 2) return toast("info", details.name, say("commands.no_samples"));
  openCheckpoints(details, async (step) => {
    try {
      const { lora_name: file, recorded } = await post(details.name, "install", { step });
      toast("success", say("commands.installed", { step }), `models/loras/${file}`);
      return recorded;
    } catch (error) {
      toast("error", details.name, String(error instanceof Error ? error.message : error));
      return false;
    }
  });
}

async function continueOwn() {
  const node = nodesOnCanvas().find(({ type }) => type === TRAIN);
  if (!node) return toast("info", say("commands.no_train_node"));
  const named = runOf(node), run = await newestRun(({ name }) => name === named);
  if (!run) return toast("info", say("commands.no_run"), say("commands.no_run.words"));
  if (run.status !== "finished" || run.is_refit) return toast("info", run.name, say(run.is_refit ? "commands.is_refit" : "commands.not_finished"));
  await continueFurther(node, { run: run.name, step: run.step, numSteps: run.num_steps });
}

async function openMain() {
  const answer = await fetch(url(`/workflow_templates/${encodeURIComponent(PACK)}/${encodeURIComponent(MAIN_WORKFLOW)}.json`));
  if (!answer.ok) throw new Error(`${MAIN_WORKFLOW}: HTTP ${answer.status}`);
  await openWorkflow(await answer.json(), MAIN_WORKFLOW);
}

/** Label, which ends as the id does; icon; key with Alt and Shift; what it does. @type {[import("./words.mjs").Key, string, string, () => unknown][]} */
const COMMANDS = [
  ["commands.OpenRuns", "pi pi-chart-line", "r", () => command("Workspace.ToggleSidebarTab.pistachio-runs")],
  ["commands.CompareCheckpoints", "pi pi-images", "c", compareNewest],
  ["commands.EvaluateNow", "pi pi-gauge", "e", () => ask("evaluate")],
  ["commands.SampleNow", "pi pi-image", "p", () => ask("sample")],
  ["commands.StopAndKeep", "pi pi-stop-circle", "s", () => ask("stop")],
  ["commands.ContinueByHalf", "pi pi-forward", "h", continueOwn],
  ["commands.OpenTrainingWorkflow", "pi pi-file-plus", "t", openMain],
];

/** @param {() => unknown} run @returns {() => Promise<void>} that says what went wrong */
function told(run) {
  return async () => {
    try {
      await run();
    } catch (error) {
      toast("error", "Pistachio", String(error instanceof Error ? error.message : error));
    }
  };
}

const idOf = (/** @type {string} */ label) => `Pistachio.${label.split(".")[1]}`;

addCommands(
  COMMANDS.map(([label, icon, , run]) => ({ id: idOf(label), label: say(/** @type {"commands.OpenRuns"} */ (label)), icon, run: told(run) })),
  [...COMMANDS.map(([label, , key]) => /** @type {[string, string]} */ ([idOf(label), key])), ["Pistachio.ReviewDataset", "d"]],
);

onMessage("pistachio.finished", (data) => {
  if (setting("Pistachio.Runs.TellWhenEnded")) toast("success", say("commands.ended", { run: data.run ?? "" }), translated(data.verdict ?? "", data.verdict_message));
});
