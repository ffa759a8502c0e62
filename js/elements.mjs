// @ts-check
/** Makes an element in one call. Knows nothing of what is shown. */

/**
 * @template {keyof HTMLElementTagNameMap} T @param {T} tag
 * @param {string | Partial<HTMLElementTagNameMap[T]>} properties a string is the class
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), typeof properties === "string" ? { className: properties } : properties);
  made.append(...children);
  return made;
}

/** Adds a style sheet that lies beside the modules. @param {string} file */
export function addStylesheet(file) {
  document.head.append(element("link", { rel: "stylesheet", href: new URL(file, import.meta.url).href }));
}
