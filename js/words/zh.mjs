// @ts-check
/** What the pack says on the canvas, in Simplified Chinese: the keys and placeholders of en.mjs. */

/** @type {import("../words.mjs").Words} */
export default Object.freeze({
  "error.http": "{path}：HTTP {status}",
});
