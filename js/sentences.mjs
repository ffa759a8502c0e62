// @ts-check
/**
 * What a node has to say after it ran, on the node: the host shows a node's pictures by itself and leaves its words out.
 * Train LoRA says it in its panel.
 */

import { addStylesheet, element } from "./elements.mjs";
import { nodeOf, onMessage, redraw } from "./host.mjs";

const LINE_PX = 17, LETTER_PX = 6.4, FRAME_PX = 14, MOST_PX = 190;
const ELSEWHERE = new Set(["PistachioTrainLora", "PistachioReviewDataset"]);

addStylesheet("sentences.css");

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

/** @type {WeakMap<CanvasNode, {words: HTMLElement, text: string}>} */
const shown = new WeakMap();

/** @param {CanvasNode} node @param {string} text @returns {number} px, as long as the box need not scroll */
export function heightOf(node, text) {
  const letters = Math.max(20, (node.size[0] - 40) / LETTER_PX);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
  return Math.min(MOST_PX, FRAME_PX + LINE_PX * lines);
}

/** @param {CanvasNode} node @param {string} text */
function show(node, text) {
  let view = shown.get(node);
  if (!view) {
    const made = { words: element("div", { className: "words", tabIndex: 0 }), text };
    made.words.setAttribute("role", "status");
    for (const type of ["keydown", "wheel"]) made.words.addEventListener(type, (event) => event.stopPropagation());
    const height = () => heightOf(node, made.text);
    // The host stretches a widget's own element to its content in one renderer; the words scroll inside of it.
    const root = element("div", "pistachio-sentences", made.words);
    const widget = node.addDOMWidget("sentences", "pistachio_sentences", root, { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height });
    widget.serialize = false;
    shown.set(node, view = made);
  }
  view.text = view.words.textContent = text;
  view.words.style.maxHeight = `${MOST_PX}px`;
  redraw();
}

onMessage("executed", ({ node: id, display_node: displayed, output }) => {
  const node = nodeOf(displayed ?? id);
  const text = output?.text;
  if (!node?.type?.startsWith("Pistachio") || ELSEWHERE.has(node.type) || !text) return;
  show(node, (Array.isArray(text) ? text.join("\n") : String(text)).trim());
});
