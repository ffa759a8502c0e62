// @ts-check
/**
 * What a node has to say after it ran, on the node: the host shows a node's pictures by itself and leaves its words out.
 * Train LoRA says it in its panel.
 */

import { addStylesheet, element } from "./elements.mjs";
import { addUnseen, nodeOf, onMessage, onNodes } from "./host.mjs";
import { saidOf } from "./words.mjs";

const LINE_PX = 17, LETTER_PX = 6.4, FRAME_PX = 14, MOST_PX = 190;
const ELSEWHERE = new Set(["PistachioTrainLora", "PistachioReviewDataset"]);

addStylesheet("sentences.css");

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

/** @type {WeakMap<CanvasNode, (text: string) => void>} */
const places = new WeakMap();

/** @param {CanvasNode} node @param {string} text @returns {number} px, as long as the box need not scroll */
export function heightOf(node, text) {
  const letters = Math.max(20, (node.size[0] - 40) / LETTER_PX);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
  return Math.min(MOST_PX, FRAME_PX + LINE_PX * lines);
}

/** @param {CanvasNode} node */
function placeFor(node) {
  const words = element("div", { className: "words", tabIndex: 0 });
  words.setAttribute("role", "status");
  words.style.maxHeight = `${MOST_PX}px`;
  for (const type of ["keydown", "wheel"]) words.addEventListener(type, (event) => event.stopPropagation());
  // The host stretches a widget's own element to its content in one renderer; the words scroll inside of it.
  const show = addUnseen(node, "sentences", element("div", "pistachio-sentences", words), () => heightOf(node, words.textContent ?? ""));
  places.set(node, (text) => {
    words.textContent = text;
    show();
  });
}

onNodes("sentences", (type) => type.startsWith("Pistachio") && !ELSEWHERE.has(type), placeFor);

onMessage("executed", ({ node: id, display_node: displayed, output }) => {
  const node = nodeOf(displayed ?? id), text = output?.text;
  if (node && text) places.get(node)?.(saidOf(output.pistachio_sentences, Array.isArray(text) ? text : [String(text)]).join("\n").trim());
});
