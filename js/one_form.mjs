// @ts-check
/**
 * App mode where the canvas has it: a form of the widgets that the workflow names, asked for in the user's language. Older canvases
 * know the mark too, and show every widget of every node instead; there the workflow opens as the graph that it is.
 */

import { beforeWorkflow, hasForms } from "./host.mjs";
import { translate } from "./one_form_words.mjs";

beforeWorkflow((workflow) => {
  const isOurs = (workflow.nodes ?? []).some((/** @type {{type?: string}} */ { type }) => String(type).startsWith("Pistachio"));
  if (!isOurs || !workflow.extra?.linearData) return;
  translate(workflow);
  if (!hasForms()) delete workflow.extra.linearMode;
});
