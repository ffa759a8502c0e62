import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { changeWords } from "../../js/review_words.mjs";
import { speak } from "../../js/words.mjs";

afterEach(() => speak("en"));

test("in English the server's phrases stay as they are", () => {
  for (const words of ["", "excluding a.png, b.png", "not holding out c.png", "the caption of 4 pictures", "something new"]) assert.equal(changeWords(words), words);
});

test("in Chinese they are said in Chinese, with the same names", async () => {
  await speak("zh");
  assert.equal(changeWords("excluding a.png, b.png"), "排除 a.png, b.png");
  assert.equal(changeWords("not holding out c.png"), "不再留出 c.png");
  assert.equal(changeWords("the caption of including.txt"), "including.txt 的描述");
  assert.deepEqual([changeWords("something new"), changeWords("")], ["something new", ""]);
});
