import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test, { afterEach } from "node:test";

import { translate } from "../../js/one_form_words.mjs";
import { speak } from "../../js/words.mjs";

const FILE = new URL("../../workflows/01 Train a character in one form.app.json", import.meta.url);
const bundled = () => JSON.parse(readFileSync(FILE, "utf8"));

afterEach(() => speak("en"));

/** @param {any} workflow @returns {[string, string | undefined, string][]} widget, label, words */
function questions({ nodes, extra }) {
  return extra.linearData.inputs.map(([id, name, { description }]) => {
    const slot = nodes.find((node) => node.id === id).inputs.find((each) => each.name === name);
    return [name, slot?.label, description];
  });
}

test("every question of the bundled form is asked in Chinese", async () => {
  await speak("zh");
  const form = bundled();
  translate(form);
  assert.deepEqual(questions(form), [
    ["folder", "图片文件夹", "同一角色约 20 张"], ["ckpt_name", "底模", "单文件；Flux、Wan 用各自的模板"],
    ["trigger_word", "触发词", "代表该角色的罕见词"], ["live", undefined, "训练进行时"],
  ]);
});

test("in English the form is as the file has it, and words of one's own stay in every language", async () => {
  const form = bundled();
  translate(form);
  assert.deepEqual(form, bundled());
  await speak("zh");
  form.extra.linearData.inputs[0][2].description = "My pictures";
  translate(form);
  assert.deepEqual(questions(form)[0], ["folder", "图片文件夹", "My pictures"]);
});
