// @ts-check
/**
 * Where reviews stand: on a node, and in a dialog over the canvas.
 *
 * `reviewOnNode(node)` serves every node that names its folder in a widget `folder`, gets a dataset from one that does, or
 * sends `ui: {"pistachio_review": [{"folder": ...}]}` when it has run.
 */

import { element } from "./elements.mjs";
import { isLinked, nodeOf, nodesOnCanvas, onCommand, onMessage, onNode } from "./host.mjs";
import { ReviewView } from "./review.mjs";
import { hasUnsaved } from "./review_folders.mjs";
import { button, icon } from "./review_parts.mjs";
import { folderOf } from "./review_scope.mjs";
import { saidOf, say } from "./words.mjs";

const MIN_HEIGHT_PX = 420;
const NODE_SIZE = /** @type {[number, number]} */ ([640, 640]);
const NODE_TILE_PX = 150;
const DIALOG_TILE_PX = 200;
const REFRESH_INTERVAL_MS = 4000; // while something runs

/**
 * @typedef {import("./host.mjs").CanvasNode} CanvasNode
 * @typedef {import("./review_store.mjs").Scope} Scope
 */

class NodeReview {
  /** @param {CanvasNode} node */
  constructor(node) {
    this.node = node;
    /** @type {Scope | null} told by the server when the node ran */
    this.told = null;
    this.view = new ReviewView({
      leastTilePx: NODE_TILE_PX, hint: say("review.hint.node"), settings: () => settingsOf(node), onLarge: () => openDialog(this.scope, () => settingsOf(node)),
    });
    this.view.root.addEventListener("pointerenter", () => this.follow());
    const widget = node.addDOMWidget("review", "pistachio_review", this.view.root, {
      serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT_PX,
    });
    widget.serialize = false;
    if (node.size[1] < NODE_SIZE[1]) node.setSize([Math.max(node.size[0], NODE_SIZE[0]), NODE_SIZE[1]]);
  }

  get scope() {
    return folderOf(this.node) ?? this.told;
  }

  /** The folder may be another one by now. */
  follow() {
    this.view.open(this.scope);
  }
}

/** @param {CanvasNode} node @returns {object} what Check is asked with */
function settingsOf(node) {
  const value = (/** @type {string} */ name) => (isLinked(node, name) ? undefined : node.widgets?.find((widget) => widget.name === name)?.value);
  const settings = { trigger_word: value("trigger_word"), resolution: value("resolution") };
  return Object.fromEntries(Object.entries(settings).filter(([, one]) => typeof one === "string" || typeof one === "number"));
}

/** @type {Set<NodeReview>} */
const reviews = new Set();

/** @param {CanvasNode} node */
export function reviewOnNode(node) {
  const review = new NodeReview(node);
  reviews.add(review);
  setTimeout(() => review.follow()); // after the workflow has filled the widgets in and made the links
  const { onRemoved, onConnectionsChange } = node;
  node.onRemoved = function () {
    reviews.delete(review);
    review.view.close();
    onRemoved?.call(this);
  };
  node.onConnectionsChange = function (...values) {
    onConnectionsChange?.apply(this, values);
    setTimeout(() => review.follow());
  };
}

// ---- the dialog ------------------------------------------------------------------

/** @type {ReviewView | null} */
let dialogView = null;

/** @param {Scope | null} scope @param {() => object} [settings] */
export function openDialog(scope, settings = () => ({})) {
  if (dialogView) return;
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const view = (dialogView = new ReviewView({ leastTilePx: DIALOG_TILE_PX, hint: say("review.hint.dialog"), settings }));
  const folder = element("input", { className: "folder", value: scope?.folder ?? "", placeholder: say("review.folder.placeholder"), ariaLabel: say("review.folder") });
  folder.addEventListener("change", () => view.open({ folder: folder.value, recursive: true }));
  folder.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") event.stopPropagation();
    if (event.key === "Enter") view.grid.root.focus();
  });
  const close = button(say("review.close"), () => dialog.close(), icon("close"));
  const title = element("h2", "", say("review.title"));
  const dialog = element("dialog", "pistachio-review-dialog", element("div", "head", title, folder, close), view.root);
  dialog.setAttribute("aria-label", say("review.dialog"));
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("cancel", (event) => {
    if (view.editor.isOpen) event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    view.close();
    dialogView = null;
    dialog.remove();
    before?.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  view.open(scope);
  (scope ? view.grid.root : folder).focus();
}

onNode("PistachioReviewDataset", reviewOnNode);
onCommand("Pistachio.ReviewDataset", say("review.command"), () => {
  const scopeOf = (/** @type {CanvasNode} */ node) => [...reviews].find((review) => review.node === node)?.scope ?? folderOf(node);
  const node = nodesOnCanvas().find(scopeOf);
  openDialog(node ? scopeOf(node) : null, () => (node ? settingsOf(node) : {}));
});

// ---- what happens meanwhile --------------------------------------------------------

const views = () => [...[...reviews].map(({ view }) => view), ...(dialogView ? [dialogView] : [])];
const reload = () => new Set(views().map((view) => view.store)).forEach((store) => store?.load());

onMessage("executed", (data) => {
  const [told] = data.output?.pistachio_review ?? [];
  if (!told) return;
  const node = nodeOf(String(data.node ?? "")); // by its whole path: nodes in two subgraphs may have one number
  for (const review of reviews) {
    if (review.node !== node) continue;
    review.told = { folder: told.folder };
    review.follow();
    if (told.notes) review.view.say(saidOf(told.sentences, told.notes).join(" "));
  }
});
for (const type of ["execution_success", "execution_interrupted", "execution_error", "reconnected"]) onMessage(type, reload);
window.addEventListener("pistachio-folder-changed", reload); // pictures were dropped on a node

window.addEventListener("beforeunload", (event) => {
  for (const view of views()) view.editor.save(); // a caption that is being typed
  if (hasUnsaved()) event.preventDefault();
});

let last = 0;
onMessage("progress", () => {
  const now = Date.now();
  if (now - last < REFRESH_INTERVAL_MS || document.hidden) return;
  last = now;
  reload(); // a captioner may be writing
});
window.addEventListener("focus", reload); // another window may have changed files
