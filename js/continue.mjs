// @ts-check
/** Puts a finished run at `continue_run` of a Train LoRA node, through a Load Run node. */

import { addNode, connect, inputNode, queue } from "./host.mjs";

const LOAD_RUN = "PistachioLoadRun";

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

/** @param {CanvasNode} train @param {string} run */
export function continueRun(train, run) {
  const there = inputNode(train, "continue_run");
  const [x, y] = train.pos;
  const loader = there?.type === LOAD_RUN ? there : addNode(LOAD_RUN, [x - 320, y + 40]);
  const widget = loader?.widgets?.find(({ name }) => name === "run");
  if (!loader || !widget) throw new Error("This ComfyUI has no Load Run node. Restart it.");
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(run)) values.unshift(run); // trained since the page was loaded
  setWidget(loader, "run", run);
  if (loader !== there) connect(loader, train, "continue_run");
}

/** @param {CanvasNode} train @param {string} run @param {number} numSteps of the run so far */
export async function continueByHalf(train, run, numSteps) {
  continueRun(train, run);
  setWidget(train, "num_steps", numSteps + Math.ceil(numSteps / 2));
  await queue();
}

/** @param {CanvasNode} node @param {string} name @param {unknown} value */
function setWidget(node, name, value) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}
