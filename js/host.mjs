// @ts-check
/**
 * The only file that touches ComfyUI's scripts: its application, its messages, its HTTP.
 * Knows nothing of runs or charts.
 */

// @ts-ignore: served by ComfyUI, not a file of this pack
import { app } from "../../scripts/app.js";
// @ts-ignore
import { api } from "../../scripts/api.js";

/**
 * What the pack uses of a node on the canvas.
 * @typedef {object} CanvasNode
 * @property {number | string} id
 * @property {{name: string, value: unknown, callback?: (value: unknown, ...rest: unknown[]) => unknown}[]} [widgets]
 * @property {{name: string, link: number | null}[]} [inputs]
 * @property {(slot: number) => CanvasNode | null} getInputNode
 * @property {(name: string, type: string, element: HTMLElement, options: object) => {serialize?: boolean}} addDOMWidget
 * @property {(() => void) | undefined} onRemoved
 * @property {(() => void) | undefined} onConfigure
 */

/** @param {(node: CanvasNode) => void} whenCreated @param {string} type of node */
export function onNode(type, whenCreated) {
  app.registerExtension({
    name: `pistachio.${type}`,
    nodeCreated(/** @type {CanvasNode & {comfyClass: string}} */ node) {
      if (node.comfyClass === type) whenCreated(node);
    },
  });
}

/** @param {string} type of message @param {(data: any) => void} listener */
export function onMessage(type, listener) {
  api.addEventListener(type, (/** @type {CustomEvent} */ event) => listener(event.detail ?? {}));
}

/** @param {string} path @returns {Promise<any>} null where the server says there is no such thing */
export async function getJson(path) {
  const response = await api.fetchApi(path, { cache: "no-store" });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return response.json();
}

/** @param {string} path @returns {string} what an <img> takes */
export function url(path) {
  return api.apiURL(path);
}

/** @param {CanvasNode} node @param {string} name @returns {CanvasNode | null} what is connected to an input */
export function inputNode(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && node.inputs?.[slot].link != null ? node.getInputNode(slot) : null;
}
