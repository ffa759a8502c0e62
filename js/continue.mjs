// @ts-check
/** Puts a run on the canvas: at `continue_run` of a Train LoRA node, or by itself, through a Load Run node. */

import { addNode, connect, inputNode, middleOfView, queue } from "./host.mjs";
import { furtherSteps } from "./history.mjs";
import { say } from "./words.mjs";

const LOAD_RUN = "PistachioLoadRun", SELECT_CHECKPOINT = "PistachioSelectCheckpoint";
const APART = 60;

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

/** @param {CanvasNode} train @param {string} run */
export function continueRun(train, run) {
  const there = inputNode(train, "continue_run");
  const [x, y] = train.pos;
  const loader = there?.type === LOAD_RUN ? there : addNode(LOAD_RUN, [x - 320, y + 40]);
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
