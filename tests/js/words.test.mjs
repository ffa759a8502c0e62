import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { say, sayCounted, sayNumber, speak, spoken } from "../../js/words.mjs";

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
