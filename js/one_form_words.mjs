// @ts-check
/** The words of app mode's form, which a workflow's file has in English. Plain data: knows no page and no host. */

import { say } from "./words.mjs";
import en from "./words/en.mjs";

/** What the form asks: a widget's label and the line below it. @type {Record<string, [import("./words.mjs").PlainKey, import("./words.mjs").PlainKey]>} */
const QUESTIONS = {
  folder: ["form.folder", "form.folder.words"],
  ckpt_name: ["form.base", "form.base.words"],
  trigger_word: ["form.trigger", "form.trigger.words"],
  live: ["form.curve", "form.curve.words"],
};

/** Into the user's language; words that somebody has changed stay. @param {any} workflow of the pack's, with a form */
export function translate(workflow) {
  for (const [id, name, config] of workflow.extra.linearData.inputs ?? []) {
    const question = QUESTIONS[name];
    if (!question) continue;
    const [label, words] = question;
    if (config?.description === en[words]) config.description = say(words);
    const node = workflow.nodes.find((/** @type {any} */ each) => each.id === id);
    const slot = node?.inputs?.find((/** @type {any} */ each) => each.name === name);
    if (slot?.label === en[label]) slot.label = say(label);
  }
}
