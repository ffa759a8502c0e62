// @ts-check
/** Icons and buttons that the review is made of. Knows nothing of pictures. */

import { element } from "./elements.mjs";

/** Drawn in a box of 16 by 16. @type {Record<string, string>} */
const SHAPES = {
  accept: "M3 8.5 6.5 12 13 4.5",
  edit: "M3 13l.6-2.6L10.8 3.2a1.3 1.3 0 0 1 2 2L5.600 12.400ZM9.500 4.500l2 2",
  hold: "M8 2.500a5.500 5.500 0 1 0 0 11 5.500 5.500 0 1 0 0-11M8 5v3.200l2.200 1.500",
  exclude: "M8 2.500a5.500 5.500 0 1 0 0 11 5.500 5.500 0 1 0 0-11M4.200 4.200l7.600 7.600",
  undo: "M5.500 3 2.500 6l3 3M2.800 6h6.200a3.800 3.800 0 0 1 0 7.600H6",
  redo: "M10.500 3l3 3-3 3M13.200 6H7a3.800 3.800 0 0 0 0 7.600h3",
  large: "M9.500 2.500h4v4M13.500 2.500 9 7M6.500 13.500h-4v-4M2.500 13.500 7 9",
  close: "M4 4l8 8M12 4l-8 8",
  keys: "M6.200 6.200a1.900 1.900 0 1 1 2.700 1.700c-.6.3-.9.700-.9 1.300M8 11.600v.1M8 1.800a6.200 6.200 0 1 0 0 12.400A6.200 6.200 0 1 0 8 1.800",
};

/** @param {string} shape */
export function icon(shape) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[shape]);
  svg.append(path);
  return svg;
}

/** @param {string} words read out, and shown at the pointer @param {() => void} whenPressed @param {Element | string} content */
export function button(words, whenPressed, content) {
  const made = element("button", "", content);
  made.type = "button";
  made.title = words;
  if (typeof content !== "string") made.setAttribute("aria-label", words);
  made.addEventListener("click", whenPressed);
  return made;
}
