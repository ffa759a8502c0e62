import assert from "node:assert/strict";
import test from "node:test";

import { chosen, countWords, filterChoices, layout, moved, rowsInView } from "../../js/review_list.mjs";

const PICTURES = [
  { name: "a.png", caption: "a man in a Red coat" },
  { name: "b.png", caption: null },
  { name: "c.png", caption: "a man", is_held_out: true, reason: "too short" },
  { name: "d.png", caption: "a dog", is_excluded: true, is_held_out: true },
  { name: "e.png", caption: null, unsaved: "a red bird" },
];
const FINDINGS = [
  { code: "blurred", topic: "Sharpness", severity: "warning", words: "2 pictures are blurred.", advice: "Leave them out.", pictures: ["a.png", "d.png", "gone.png"] },
  { code: "other", topic: "Size", severity: "warning", words: "1 picture is small.", advice: "", pictures: ["gone.png"] },
];
const names = (asked) => chosen(PICTURES, { filter: "all", query: "", findings: FINDINGS, ...asked }).map(({ name }) => name[0]).join("");

test("every word of a search is in the name or in the text as it will be saved", () => {
  assert.equal(names({ query: " RED a" }), "ae");
  assert.equal(names({ query: "man c.p" }), "c");
  assert.equal(names({ query: "cat" }), "");
});

test("filters, of marks and of findings", () => {
  assert.equal(names({ filter: "empty" }), "b");
  assert.equal(names({ filter: "held_out" }), "cd");
  assert.equal(names({ filter: "unsaved", query: "red" }), "e");
  assert.equal(names({ filter: "finding:blurred" }), "ad");
  assert.equal(names({ filter: "finding:unknown" }), "");
});

test("only filters that show something are offered, and all", () => {
  const choices = filterChoices(PICTURES, FINDINGS);
  assert.deepEqual(choices.map(({ key, count }) => [key, count]), [
    ["all", 5], ["look", 1], ["empty", 1], ["held_out", 2], ["excluded", 1], ["unsaved", 1], ["finding:blurred", 2],
  ]);
  assert.equal(choices.at(-1).title, "2 pictures are blurred. Leave them out.");
  assert.deepEqual(filterChoices([], []).map(({ key }) => key), ["all"]);
});

test("a picture that is excluded is not counted as held out", () => {
  assert.equal(countWords(PICTURES), "5 pictures, 1 to look at, 1 excluded, 1 held out");
  assert.equal(countWords([PICTURES[0]]), "1 picture");
});

test("as many columns as fit, over the whole width", () => {
  for (const width of [60, 150, 400, 1471]) {
    const { columns, tileWidthPx, rowHeightPx, tileHeightPx } = layout(width, 150);
    assert.ok(columns >= 1 && columns * tileWidthPx + (columns - 1) * 8 <= width && rowHeightPx > tileHeightPx);
    assert.ok(columns === 1 || tileWidthPx >= 150);
    assert.ok(width < 150 || (columns + 1) * 158 - 8 > width, "one more would have fitted");
  }
});

test("rows in view, with one before and after; a list that became short shows its end", () => {
  assert.deepEqual(rowsInView(0, 500, 200, 100), [0, 4]);
  assert.deepEqual(rowsInView(1000, 500, 200, 100), [4, 9]);
  assert.deepEqual(rowsInView(19_500, 500, 200, 100), [96, 100]);
  assert.deepEqual(rowsInView(19_500, 500, 200, 1), [0, 1]);
  assert.deepEqual(rowsInView(0, 500, 200, 0), [0, 0]);
});

test("where the keys lead", () => {
  const to = (key, from) => moved(key, from, 11, 4, 2); // rows of 4, 4 and 3
  assert.deepEqual([to("ArrowLeft", 0), to("ArrowRight", 10), to("ArrowRight", 3), to("Home", 5), to("End", 5)], [0, 10, 4, 0, 10]);
  assert.deepEqual([to("ArrowDown", 2), to("ArrowUp", 2), to("ArrowUp", 6)], [6, 2, 2]);
  assert.equal(to("ArrowDown", 7), 10, "the last row has nothing below: its end");
  assert.equal(to("ArrowDown", 10), 10);
  assert.deepEqual([to("PageDown", 1), to("PageUp", 9), to("PageDown", 9)], [9, 1, 10]);
  assert.equal(to("q", 1), null);
});
