// @ts-check
/**
 * The only file that touches ComfyUI's scripts: its application, its messages, its HTTP.
 * Knows nothing of runs or charts.
 */

// @ts-ignore: served by ComfyUI, not a file of this pack
import { app } from "../../scripts/app.js";
// @ts-ignore
import { api } from "../../scripts/api.js";
import { say } from "./words.mjs";

/**
 * What the pack uses of a node on the canvas.
 * @typedef {object} CanvasNode
 * @property {number | string} id
 * @property {[number, number]} pos
 * @property {{name: string, value: unknown, options?: {values?: unknown}, callback?: (value: unknown, ...rest: unknown[]) => unknown}[]} [widgets]
 * @property {{name: string, link: number | null}[]} [inputs]
 * @property {(slot: number) => CanvasNode | null} getInputNode
 * @property {string} type
 * @property {[number, number]} size
 * @property {(size: [number, number]) => void} setSize
 * @property {(name: string, type: string, element: HTMLElement, options: object) => {serialize?: boolean}} addDOMWidget
 * @property {(() => void) | undefined} onRemoved
 * @property {(() => void) | undefined} onConfigure
 * @property {((...values: unknown[]) => void) | undefined} onConnectionsChange
 */

/** @returns {string} the user's language as the host names it, for example "en" or "zh" */
export function locale() {
  return app.extensionManager.setting.get("Comfy.Locale") ?? "en";
}

/** @param {(node: CanvasNode) => void} whenCreated @param {string} type of node */
export function onNode(type, whenCreated) {
  app.registerExtension({
    name: `pistachio.${type}`,
    nodeCreated(/** @type {CanvasNode & {comfyClass: string}} */ node) {
      if (node.comfyClass === type) whenCreated(node);
    },
  });
}

/** @param {string} id @param {string} label @param {() => void} run it from the host's menu and palette */
export function onCommand(id, label, run) {
  app.registerExtension({
    name: `pistachio.${id}`,
    commands: [{ id, label, function: run }],
    menuCommands: [{ path: ["Extensions", "Pistachio"], commands: [id] }],
  });
}

/** @returns {CanvasNode[]} the selected nodes first */
export function nodesOnCanvas() {
  const selected = Object.values(app.canvas?.selected_nodes ?? {});
  return [...selected, ...(app.graph?._nodes ?? []).filter((/** @type {CanvasNode} */ node) => !selected.includes(node))];
}

/** @param {string} type of message @param {(data: any) => void} listener */
export function onMessage(type, listener) {
  api.addEventListener(type, (/** @type {CustomEvent} */ event) => listener(event.detail ?? {}));
}

/** @param {string} path @returns {Promise<any>} null where the server says there is no such thing */
export async function getJson(path) {
  const response = await api.fetchApi(path, { cache: "no-store" });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error((await body(response))?.error ?? say("error.http", { path, status: response.status }));
  return response.json();
}

/** @param {string} path @param {object} content @returns {Promise<{status: number, body: any}>} body: null where it is no JSON */
export async function postJson(path, content) {
  const response = await api.fetchApi(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  });
  return { status: response.status, body: await body(response) };
}

/** @param {Response} response @returns {Promise<any>} */
async function body(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) return null; // the host's own refusals are no JSON
    throw error;
  }
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

/**
 * A tab in the host's sidebar. The host drops its content when another tab is opened: `fill` is called anew each time.
 * @param {{id: string, title: string, tooltip: string, icon: string}} tab @param {(element: HTMLElement) => void} fill @param {() => void} empty
 */
export function addSidebarTab(tab, fill, empty) {
  app.extensionManager.registerSidebarTab({ ...tab, type: "custom", render: fill, destroy: empty });
}

/** @param {"success" | "info" | "error"} severity @param {string} summary @param {string} [detail] */
export function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === "error" ? 12000 : 6000 });
}

/** @param {string} title @param {string} message @returns {Promise<boolean>} */
export async function confirmed(title, message) {
  return (await app.extensionManager.dialog.confirm({ title, message, type: "delete" })) === true;
}

/** @param {string} title @param {string} message @param {string} value @returns {Promise<string | null>} null where it was left without an answer */
export async function asked(title, message, value) {
  return app.extensionManager.dialog.prompt({ title, message, defaultValue: value });
}

/** @param {string} type @param {[number, number]} position @returns {CanvasNode | null} null where the host has no such node */
export function addNode(type, position) {
  // @ts-ignore: the host's global
  const node = window.LiteGraph.createNode(type);
  if (!node) return null;
  node.pos = position;
  app.graph.add(node);
  return node;
}

/** The graph as it stands, as the queue button does it. */
export async function queue() {
  await app.queuePrompt(0, 1);
}

/** @param {CanvasNode} source @param {CanvasNode} target @param {string} input */
export function connect(source, target, input) {
  const slot = target.inputs?.findIndex(({ name }) => name === input) ?? -1;
  // @ts-ignore: of the host's node
  if (slot >= 0) source.connect(0, target, slot);
  app.canvas.setDirty(true, true);
}
