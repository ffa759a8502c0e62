// @ts-check
/** Copies a text. Browsers keep their clipboard from pages that come over plain HTTP from another machine: there the old way is left. */

/** @param {string} text @throws where the browser lets nobody copy */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const box = document.createElement("textarea");
  box.value = text;
  box.style.cssText = "position: fixed; opacity: 0";
  document.body.append(box);
  box.select();
  const isCopied = document.execCommand("copy");
  box.remove();
  before?.focus();
  if (!isCopied) throw new Error(text);
}
