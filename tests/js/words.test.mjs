import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { say, sayCounted, sayNumber, speak, spoken, translated } from "../../js/words.mjs";

afterEach(() => speak("en"));

test("a text is said with its values", () => {
  assert.equal(say("error.http", { path: "/pistachio/runs", status: 500 }), "/pistachio/runs: HTTP 500");
  assert.equal(say("review.said.undone", { change: "{name}" }), "Undone: {name}.", "a value is not filled again");
});

test("the host's locale chooses the language; one that the pack has not is English", async () => {
  await speak("zh");
  assert.equal(spoken(), "zh");
  assert.equal(say("review.filter.excluded"), "已排除");
  for (const locale of ["ja", "zh-TW", "toString", ""]) {
    await speak(locale);
    assert.equal(spoken(), "en");
    assert.equal(say("review.filter.excluded"), "Excluded");
  }
});

test("one and many", async () => {
  assert.deepEqual([0, 1, 2].map((count) => sayCounted("review.pictures", count)), ["0 pictures", "1 picture", "2 pictures"]);
  await speak("zh");
  assert.deepEqual([1, 2].map((count) => sayCounted("review.pictures", count)), ["1 张图片", "2 张图片"]);
});

test("numbers are written for people, and what is given as a string stays", () => {
  assert.equal(sayCounted("review.pictures", 20000), "20,000 pictures");
  assert.equal(sayCounted("review.pictures", 1500), "1500 pictures");
  assert.equal(say("error.http", { path: "x", status: "20000" }), "x: HTTP 20000");
  assert.equal(sayNumber(-0.125, { maximumFractionDigits: 2, style: "percent" }), "-12.5%");
});

test("a sentence of the server's is said by its code, with the sentences and lists among its values", async () => {
  const pictures = { code: "pictures", values: { count: "4" } };
  const tied = { code: "selection.tied", values: { steps: [{ code: "selection.span", values: { first: "1500", last: "20000" } }, "25000"], pictures, chosen: "1500" } };
  assert.equal(translated("Steps 1500 to 20000 and 25000 …", tied), "Steps 1500 to 20000 and 25000 …", "English is the server's own");
  await speak("zh");
  assert.equal(translated("Steps …", tied), "用 4 张图片无法区分第 1500–20000、25000 步；我们选择了第 1500 步。");
  assert.equal(translated("From …", { code: "verdict.overfit", values: { best: "12345", chosen: "12000" } }), "大约从第 12345 步起，它开始死记训练图片。我们保留了第 12000 步。");
});

test("what an older run says, or a sentence that this page does not know, stays English", async () => {
  await speak("zh");
  const unknown = { code: "verdict.of_a_newer_version", values: {} };
  for (const message of [undefined, null, unknown, { code: "toString", values: {} }, { code: "selection.tied", values: { steps: [unknown], pictures: "4", chosen: "1" } }]) {
    assert.equal(translated("Finished.", message), "Finished.");
  }
});
