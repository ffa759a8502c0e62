// @ts-check
/**
 * The only file that touches ComfyUI's scripts: its application, its messages, its HTTP.
 * Knows nothing of runs or charts.
 */

// @ts-ignore: served by ComfyUI, not a file of this pack
import { api as hostApi } from "../../scripts/api.js";
// @ts-ignore
import { app as hostApp } from "../../scripts/app.js";
import { say } from "./words.mjs";

/** @type {import("@comfyorg/comfyui-frontend-types").ComfyApp} */
const app = hostApp;
/** @type {import("@comfyorg/comfyui-frontend-types").ComfyApi} */
const api = hostApi;

/**
 * What the pack uses of a node on the canvas.
 * @typedef {object} CanvasNode
 * @property {number | string} id
 * @property {unknown} graph that it stands in: the workflow's, or a subgraph
 * @property {Record<string, unknown>} properties saved with the workflow
 * @property {[number, number]} pos
 * @property {{name: string, value: unknown, options?: {values?: unknown}, callback?: (value: unknown, ...rest: unknown[]) => unknown}[]} [widgets]
 * @property {{name: string, link: number | null}[]} [inputs]
 * @property {(slot: number) => CanvasNode | null} getInputNode
 * @property {string} type
 * @property {string} title
 * @property {[number, number]} size
 * @property {(size: [number, number]) => void} setSize
 * @property {() => [number, number]} computeSize the least that its widgets need
 * @property {(name: string, type: string, element: HTMLElement, options: object) => ElementWidget} addDOMWidget
 * @property {(() => void) | undefined} onRemoved
 * @property {(() => void) | undefined} onConfigure
 * @property {((...values: unknown[]) => void) | undefined} onConnectionsChange
 *
 * @typedef {{serialize?: boolean, hidden?: boolean}} ElementWidget
 */

/** @returns {string} the user's language as the host names it, for example "en" or "zh" */
export function locale() {
  const given = app.extensionManager.setting.get("Comfy.Locale");
  return typeof given === "string" ? given : "en";
}

/** @param {(node: CanvasNode) => void} whenCreated @param {string} type of node */
export function onNode(type, whenCreated) {
  onNodes(type, (each) => each === type, whenCreated);
}

/** @param {string} part of the pack @param {(type: string) => boolean} isWanted @param {(node: CanvasNode) => void} whenCreated */
export function onNodes(part, isWanted, whenCreated) {
  app.registerExtension({
    name: `pistachio.${part}`,
    nodeCreated(node) {
      if (isWanted(node.comfyClass ?? "")) whenCreated(ours(node));
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

/** The host's node by what the pack uses of it. @param {unknown} node @returns {CanvasNode} */
function ours(node) {
  return /** @type {CanvasNode} */ (node);
}

/** @returns {CanvasNode[]} those in subgraphs too: the selected ones first, then those of the graph that is seen */
export function nodesOnCanvas() {
  const nodes = new Set([...Object.values(app.canvas?.selected_nodes ?? {}), ...(app.canvas?.graph?._nodes ?? [])].map(ours));
  const graphs = [/** @type {any} */ (app.graph)];
  for (const graph of graphs) {
    for (const node of graph?._nodes ?? []) {
      nodes.add(node);
      if (node.subgraph && !graphs.includes(node.subgraph)) graphs.push(node.subgraph);
    }
  }
  return [...nodes];
}

/** @param {string} type of message @param {(data: any) => void} listener */
export function onMessage(type, listener) {
  // The host declares its own messages alone, and passes on those of packs just the same.
  /** @type {EventTarget} */ (api).addEventListener(type, (event) => listener(/** @type {CustomEvent} */ (event).detail ?? {}));
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

/**
 * Calls when a widget of the node has kept a new value for a moment, as while a name is typed; no more once the node is gone.
 * @param {CanvasNode} node @param {string[]} names of its widgets @param {number} waitMs @param {() => void} settled
 */
export function whenSettled(node, names, waitMs, settled) {
  let wait = 0;
  for (const widget of node.widgets ?? []) {
    if (!names.includes(widget.name)) continue;
    const before = widget.callback;
    widget.callback = function (...values) {
      const result = before?.apply(this, values);
      clearTimeout(wait);
      wait = window.setTimeout(settled, waitMs);
      return result;
    };
  }
  whenRemoved(node, () => clearTimeout(wait));
}

/** @param {CanvasNode} node @param {() => void} end */
export function whenRemoved(node, end) {
  const { onRemoved } = node;
  node.onRemoved = function () {
    end();
    onRemoved?.call(this);
  };
}

/** App mode came with the builder of its forms. @returns {boolean} */
export function hasForms() {
  return hostSetting("Comfy.AppBuilder.VueNodeSwitchDismissed") !== undefined;
}

/**
 * An element on a node that takes no room until it is shown, for what is known later.
 * @param {CanvasNode} node @param {string} name @param {HTMLElement} root @param {() => number} height px in the older renderer
 * @returns {() => void} shows it
 */
export function addUnseen(node, name, root, height) {
  /** @type {ElementWidget | null} */
  let widget = null;
  const add = () => {
    const heightNow = () => (root.hidden ? 0 : height());
    // A second place for the same element, in a panel of the host's, would take it off the node.
    const added = node.addDOMWidget(name, `pistachio_${name}`, root, { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: heightNow, getMaxHeight: heightNow });
    added.serialize = false;
    return added;
  };
  root.classList.add("pistachio-unseen"); // theme.css closes the gap that the host leaves between widgets
  root.hidden = true;
  // Nodes 2.0 of the older hosts draws no widget that comes after a value or a link of the node was changed; the newer one gives every
  // such widget a share of the node's free room.
  if (!hasForms()) {
    widget = add();
    widget.hidden = true;
  }
  return () => {
    widget ??= add();
    root.hidden = widget.hidden = false;
    redraw();
  };
}

/** @param {CanvasNode} node @param {string} name @returns {boolean} to a node, or to an input of the subgraph that it stands in */
export function isLinked(node, name) {
  return node.inputs?.find((input) => input.name === name)?.link != null;
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

let released = Promise.resolve(), release = () => {};
window.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.repeat) released = new Promise((resolve) => { release = resolve; });
}, { capture: true });
for (const end of ["keyup", "blur"]) window.addEventListener(end, () => release(), { capture: true });

/** @param {string} title @param {string} message @param {string} value @returns {Promise<string | null>} null where it was left without an answer */
export async function asked(title, message, value) {
  await released; // the host's prompt would take the end of the press that asked for it as an answer
  return app.extensionManager.dialog.prompt({ title, message, defaultValue: value });
}

/**
 * @param {string} type @param {[number, number]} position @param {unknown} graph of a node that it is to be connected to, or the one that is seen
 * @returns {CanvasNode | null} null where the host has no such node
 */
export function addNode(type, position, graph = app.canvas.graph) {
  // @ts-ignore: the host's global
  const node = window.LiteGraph.createNode(type);
  if (!node) return null;
  node.pos = position;
  /** @type {any} */ (graph ?? app.graph).add(node);
  return node;
}

/** @returns {[number, number]} the middle of what is seen of the canvas, in its own units */
export function middleOfView() {
  const { ds, canvas } = app.canvas;
  const box = canvas.getBoundingClientRect();
  return [box.width / 2 / ds.scale - ds.offset[0], box.height / 2 / ds.scale - ds.offset[1]];
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

// ---- files, errors, the connection -----------------------------------------------------

/** @param {MouseEvent} event @returns {CanvasNode | null} the node under the pointer, in either renderer */
export function nodeAt(event) {
  const graph = app.canvas?.graph;
  if (!graph) return null;
  const [x, y] = app.canvas.convertEventToCanvasOffset(event);
  const node = graph.getNodeOnPos(x, y);
  return node ? ours(node) : null;
}

/** @param {string} id of a message or an error; in a subgraph it is a path of ids @returns {CanvasNode | null} */
export function nodeOf(id) {
  /** @type {any} */
  let graph = app.graph, node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** @returns {unknown} what the open workflow is called in prompts, and in our messages */
export function workflowId() {
  return app.graph?.id;
}

/** @type {{prompt: string, workflow: Promise<unknown>} | null} the latest that was asked for */
let queued = null;

/** @param {string} prompt that runs now @returns {Promise<unknown>} its workflow's id; undefined where it has none, or runs no more */
export function workflowOf(prompt) {
  if (queued?.prompt !== prompt) {
    const workflow = getJson("/queue").then(({ queue_running: running }) => (
      running.find((/** @type {any[]} */ [, id]) => id === prompt)?.[3]?.extra_pnginfo?.workflow?.id
    ), () => undefined); // of a stopped server: what was asked for is left out
    queued = { prompt, workflow };
  }
  return queued.workflow;
}

/** What a script wrote into a node by itself is kept with the open workflow, as what a person does is. */
export function keepChange() {
  const tracker = /** @type {any} */ (app.extensionManager).workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState(); // of the older canvas
}

/** @param {CanvasNode | null} node @param {string} name of an input @returns {string} its tooltip in English, as the node's definition has it; "" where there is none */
export function inputTip(node, name) {
  const inputs = /** @type {any} */ (node)?.constructor?.nodeData?.input;
  return (inputs?.required?.[name] ?? inputs?.optional?.[name])?.[1]?.tooltip ?? "";
}

/** After something was put on a node later than it was made: the host lays it out when it draws. */
export function redraw() {
  app.canvas.setDirty(true, true);
}

/** @returns {Record<string, {class_type: string, errors: {type: string, message: string, details: string, extra_info?: any}[]}>} what the server found wrong at the last Run */
export function nodeErrors() {
  return /** @type {any} */ (app).lastNodeErrors ?? {};
}

/** @typedef {{severity: "success" | "info" | "warn" | "error", summary: string, detail?: string, life?: number}} Toast */

/** @param {Toast} message @param {Toast | null} [before] one that it takes the place of @returns {Toast} */
export function toastInstead(message, before = null) {
  if (before) untoast(before);
  app.extensionManager.toast.add(message);
  return message;
}

/** @param {Toast} message */
export function untoast(message) {
  app.extensionManager.toast.remove(message);
}

/**
 * Sends a file's bytes. Rejects with a TypeError where the server can't be reached or the signal stopped it.
 * @param {string} path @param {Blob} bytes @param {{signal: AbortSignal, whenMoved: (bytes: number) => void}} how
 * @returns {Promise<{status: number, body: any}>} body: null where it is no JSON
 */
export function sendBytes(path, bytes, { signal, whenMoved }) {
  return new Promise((resolve, reject) => {
    // `fetch` tells nothing of what was sent so far.
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    const fail = () => reject(new TypeError(path));
    request.open("POST", api.apiURL(path));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (api.user) request.setRequestHeader("Comfy-User", api.user);
    request.upload.onprogress = (event) => whenMoved(event.loaded);
    request.onerror = request.onabort = request.ontimeout = fail;
    request.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(request.responseText);
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error;
      }
      resolve({ status: request.status, body: answer });
    };
    request.onloadend = () => signal.removeEventListener("abort", stop);
    signal.addEventListener("abort", stop);
    if (signal.aborted) fail();
    else request.send(bytes);
  });
}

/**
 * Listed in the host's settings; the words of its language come from locales/<language>/settings.json.
 * @param {{id: string, category: string[], name: string, tooltip: string, type: string, defaultValue: unknown, attrs?: object}[]} settings
 */
export function addSettings(settings) {
  app.registerExtension({ name: "pistachio.settings", settings: /** @type {any[]} */ (settings) });
}

/** @param {string} id @returns {unknown} undefined where the host has no such setting */
export function hostSetting(id) {
  return app.extensionManager.setting.get(id);
}

/**
 * In the host's menu and palette, with their shortcuts in its list of keys, where a person may change them.
 * @param {{id: string, label: string, icon: string, run: () => unknown}[]} commands
 * @param {[id: string, key: string][]} shortcuts keys that are pressed with Alt and Shift
 */
export function addCommands(commands, shortcuts) {
  app.registerExtension({
    name: "pistachio.commands",
    commands: commands.map(({ id, label, icon, run }) => ({ id, label, icon, function: async () => { await run(); } })),
    keybindings: shortcuts.map(([commandId, key]) => ({ commandId, combo: { key, alt: true, shift: true } })),
    menuCommands: [{ path: ["Extensions", "Pistachio"], commands: commands.map(({ id }) => id) }],
  });
}

/** @param {string} id of a command of the host's or of the pack's */
export async function command(id) {
  await app.extensionManager.command.execute(id);
}

/** Called with every workflow before the canvas builds it; what is changed there is built. @param {(workflow: any) => void} change */
export function beforeWorkflow(change) {
  app.registerExtension({ name: "pistachio.workflows", beforeConfigureGraph: async (/** @type {any} */ workflow) => change(workflow) });
}

/** @param {object} workflow @param {string} name of its tab */
export async function openWorkflow(workflow, name) {
  await app.loadGraphData(/** @type {any} */ (workflow), true, true, name);
}
