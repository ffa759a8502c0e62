// @ts-check
/**
 * App mode where the canvas has it: a form of the widgets that the workflow names. Older canvases know the mark too, and
 * show every widget of every node instead; there the workflow opens as the graph that it is.
 */

import { beforeWorkflow, hostSetting } from "./host.mjs";

/** The builder of such forms came with them. */
const hasForms = () => hostSetting("Comfy.AppBuilder.VueNodeSwitchDismissed") !== undefined;

beforeWorkflow((workflow) => {
  const isOurs = (workflow.nodes ?? []).some((/** @type {{type?: string}} */ { type }) => String(type).startsWith("Pistachio"));
  if (isOurs && workflow.extra?.linearData && !hasForms()) delete workflow.extra.linearMode;
});
