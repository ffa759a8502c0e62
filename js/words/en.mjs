// @ts-check
/**
 * What the pack says on the canvas, in English: one line a key, the prefix names the part that says it.
 * {name} stands for a value. `key.one` and `key.other` are a singular and a plural, for `sayCounted`.
 */

export default Object.freeze(/** @type {const} */ ({
  "error.http": "{path}: HTTP {status}",
}));
