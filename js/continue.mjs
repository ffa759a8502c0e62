// @ts-check
/** Puts a run on the canvas: at `continue_run` of a Train LoRA node, or by itself, through a Load Run node. */

import { addNode, connect, inputNode, isLinked, keepChange, middleOfView, queue } from "./host.mjs";
import { furtherSteps } from "./history.mjs";
import { say } from "./words.mjs";

const LOAD_RUN = "PistachioLoadRun", SELECT_CHECKPOINT = "PistachioSelectCheckpoint";
const APART = 60;
const TOLD = "pistachio_run"; // among the node's properties
export const ON_ALL = "-all"; // what a run's name gets that is trained on all pictures

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

/** The run that a Train LoRA node would train, as the canvas has it; null where another node says so while it runs. @param {CanvasNode} train */
export function runWritten(train) {
  const isContinued = isLinked(train, "continue_run");
  const node = isContinued ? inputNode(train, "continue_run") : train, name = isContinued ? "run" : "run_name";
  const value = node?.widgets?.find((widget) => widget.name === name)?.value;
  return !node || isLinked(node, name) || typeof value !== "string" ? null : value.trim();
}

/** The same; where the canvas does not have it, the run that the node trained last. @param {CanvasNode} train @returns {string | null} */
export function runOf(train) {
  const written = runWritten(train), told = train.properties[TOLD];
  if (typeof told !== "string") return written;
  return written === null || told === written + ON_ALL ? told : written;
}

/** @param {CanvasNode} train @param {string} run that it trains, or has given back */
export function keepRun(train, run) {
  if (train.properties[TOLD] === run) return;
  train.properties[TOLD] = run;
  keepChange();
}

/** @param {CanvasNode} train @param {string} run */
export function continueRun(train, run) {
  const there = inputNode(train, "continue_run");
  const [x, y] = train.pos;
  const loader = there?.type === LOAD_RUN ? there : addNode(LOAD_RUN, [x - 320, y + 40], train.graph);
  setRun(loader, run);
  if (loader !== there) connect(/** @type {CanvasNode} */ (loader), train, "continue_run");
}

/** Load Run and Select Checkpoint, wired, in the middle of what is seen. @param {string} run */
export function placeRun(run) {
  const [x, y] = middleOfView();
  const loader = addNode(LOAD_RUN, [0, 0]), select = addNode(SELECT_CHECKPOINT, [0, 0]);
  setRun(loader, run);
  if (!loader || !select) return;
  const width = loader.size[0] + APART + select.size[0], top = y - Math.max(loader.size[1], select.size[1]) / 2;
  loader.pos = [x - width / 2, top];
  select.pos = [x - width / 2 + loader.size[0] + APART, top];
  connect(loader, select, "run");
}

/** @param {CanvasNode | null} loader @param {string} run */
function setRun(loader, run) {
  const widget = loader?.widgets?.find(({ name }) => name === "run");
  if (!loader || !widget) throw new Error(say("runs.no_load_run"));
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(run)) values.unshift(run); // trained since the page was loaded
  setWidget(loader, "run", run);
}

/** Queues the graph, to the run's planned end or past it. @param {CanvasNode} train @param {{run: string, step: number, numSteps: number}} finished */
export async function continueFurther(train, finished) {
  continueRun(train, finished.run);
  setWidget(train, "num_steps", furtherSteps(finished).steps);
  await queue();
}

/** @param {CanvasNode} node @param {string} name @param {unknown} value */
function setWidget(node, name, value) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}
