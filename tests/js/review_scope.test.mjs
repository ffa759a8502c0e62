import assert from "node:assert/strict";
import test from "node:test";

import { folderOf } from "../../js/review_scope.mjs";

/** A node as the canvas has it; an input that leads to no node is one of the subgraph's own. */
function node(type, widgets, inputs = {}) {
  const names = Object.keys(inputs);
  return {
    type, widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
    inputs: names.map((name, index) => ({ name, link: inputs[name] === undefined ? null : index })),
    getInputNode: (slot) => (inputs[names[slot]] === "subgraph" ? null : inputs[names[slot]]),
  };
}
const images = (folder, inputs = { folder: undefined }) => node("PistachioLoadImageFolder", { folder, recursive: false }, inputs);
const review = (dataset) => node("PistachioReviewDataset", { trigger_word: "" }, { dataset });

test("the folder of the nearest node that names one", () => {
  assert.deepEqual(folderOf(review(node("PistachioCaptionDataset", {}, { dataset: images("anna"), captioner: node("PistachioLoadJoyCaption", {}) }))), { folder: "anna", recursive: false, videos: false });
  assert.deepEqual(folderOf(review(node("PistachioLoadVideoFolder", { folder: "clips" }))), { folder: "clips", recursive: true, videos: true });
  assert.equal(folderOf(review(undefined)), null);
});

test("a folder that is given to its node, by a node or by the subgraph around it, is known after the run alone", () => {
  assert.equal(folderOf(review(images("my_character", { folder: "subgraph" }))), null);
  assert.equal(folderOf(review(images("my_character", { folder: images("above") }))), null);
});

test("nodes in a circle are passed once", () => {
  const inputs = {}, first = node("PistachioSplitDataset", {}, inputs);
  const circle = review(first);
  first.inputs = [{ name: "dataset", link: 1 }];
  first.getInputNode = () => circle;
  assert.equal(folderOf(circle), null);
});
