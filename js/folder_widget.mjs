// @ts-check
/**
 * What stands on the nodes that name a folder: its first pictures, a button to choose another, and a place to drop files.
 * Works in both of the host's renderers and in its app mode, whose hooks are `onDragOver` and `onDragDrop` of a node.
 */

import { Upload } from "./drop.mjs";
import { chosenFiles, droppedFiles, hasFiles, MOST_FILES } from "./drop_files.mjs";
import { planOf, targetOf } from "./drop_plan.mjs";
import { element } from "./elements.mjs";
import { chooseFolder, thumbnail } from "./folders.mjs";
import { contentWords } from "./folders_list.mjs";
import { getJson, isLinked, nodeAt, onMessage, onNode, redraw, toast, whenRemoved, whenSettled } from "./host.mjs";
import { button } from "./review_parts.mjs";
import { say, sayCounted } from "./words.mjs";

const MARGIN_PX = 10; // that the older renderer leaves around an element
const HEIGHT_PX = 136 + 2 * MARGIN_PX;
const WIDTH_PX = 300;
const BUTTON_HEIGHT_PX = 30 + 2 * MARGIN_PX;
const READ_WAIT_MS = 250; // while a name is typed
const OTHER_DOM = ".dom-widget"; // the host's frame of an element over the canvas, where the canvas itself hears nothing

/**
 * @typedef {import("./host.mjs").CanvasNode & {onDragOver?: (event: DragEvent) => boolean, onDragDrop?: (event: DragEvent) => Promise<boolean>}} CanvasNode
 * @typedef {import("./drop_files.mjs").Given} Given
 * @typedef {import("./drop_plan.mjs").Place} Place
 */

class FolderView {
  /** @param {CanvasNode} node @param {{videos: boolean}} takes */
  constructor(node, { videos }) {
    this.node = node;
    this.videos = videos;
    /** @type {Place | null} */
    this.place = null;
    this.asked = 0;
    /** @type {Upload | null} */
    this.upload = null;
    this.choose = button(say("folders.choose.title"), () => this.pick(), say("folders.choose"));
    this.files = element("input", { type: "file", multiple: true, hidden: true, accept: `image/*,.txt${videos ? ",video/*" : ""}` });
    this.files.addEventListener("change", () => this.take(Promise.resolve(chosenFiles(this.files))).then(() => (this.files.value = "")));
    this.add = button(say("drop.add.title"), () => this.files.click(), say("drop.add"));
    this.count = element("span", "count");
    this.strip = element("div", "strip");
    this.bar = element("progress", { max: 1, value: 0 });
    this.status = element("div", "status");
    this.status.setAttribute("role", "status");
    this.actions = element("div", "actions");
    this.result = element("div", { className: "result", hidden: true }, this.status, this.bar, this.actions);
    this.root = element("div", "pistachio-folder", element("div", "top", this.choose, this.add, this.files), this.count, this.strip, this.result);
    const widget = node.addDOMWidget("pictures", "pistachio_folder", this.root, {
      serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT_PX, getMaxHeight: () => HEIGHT_PX,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], WIDTH_PX), node.size[1] + HEIGHT_PX]); // the host does it in its own time only
    for (const type of ["keydown", "keyup"]) this.root.addEventListener(type, (event) => event.stopPropagation());
    this.strip.addEventListener("wheel", (event) => event.stopPropagation());
  }

  get widget() {
    return this.node.widgets?.find(({ name }) => name === "folder") ?? null;
  }

  /** Whether the folder is given to the node: its own widget is not what runs. */
  get isGiven() {
    return isLinked(this.node, "folder");
  }

  get folder() {
    const value = this.isGiven ? "" : this.widget?.value;
    return typeof value === "string" ? value : "";
  }

  /** @param {string} folder */
  set folder(folder) {
    const widget = this.widget;
    if (!widget || widget.value === folder) return;
    widget.value = folder;
    widget.callback?.(folder);
    redraw();
  }

  /** Looks at the folder anew. */
  async read() {
    const question = ++this.asked;
    try {
      const place = await getJson(`/pistachio/folder?folder=${encodeURIComponent(this.folder)}`);
      if (question === this.asked) this.place = place;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // the connection is told of elsewhere
    }
    if (question !== this.asked) return;
    this.draw();
    redraw(); // a node out of a workflow may be too low for what it has got since
  }

  draw() {
    const place = this.place;
    const first = place?.first ?? [];
    this.count.textContent = place?.exists ? contentWords({ name: "", ...place }) : "";
    this.count.title = this.count.textContent ?? "";
    this.add.disabled = Boolean(this.upload) || this.isGiven;
    this.choose.disabled = this.isGiven;
    if (!this.result.hidden) return;
    const hint = this.isGiven ? say("drop.given") : !this.folder || place?.exists || place?.takes_files ? say(this.videos ? "drop.hint.videos" : "drop.hint") : place?.problem ?? "";
    const shown = JSON.stringify([place?.folder, first, hint]);
    if (this.strip.dataset.shown === shown) return;
    this.strip.dataset.shown = shown;
    if (first.length) this.strip.replaceChildren(...first.map((picture) => Object.assign(thumbnail(this.folder, picture), { title: picture.file })));
    else this.strip.replaceChildren(element("div", "hint", hint));
  }

  async pick() {
    const chosen = await chooseFolder(this.folder);
    if (chosen !== null) this.folder = chosen;
  }

  // ---- files ---------------------------------------------------------------------------

  /** @param {Promise<Given>} given */
  async take(given) {
    if (this.upload) return toast("info", say("drop.busy"));
    if (this.isGiven) return toast("info", say("drop.given"));
    try {
      await this.takeFiles(await given);
    } catch (error) {
      this.upload = null;
      this.showResult(say("drop.failed", { reason: String(error instanceof Error ? error.message : error) }), [], true);
    }
  }

  /** @param {Given} given */
  async takeFiles({ files, cut }) {
    if (!files.length) return;
    const place = /** @type {Place} */ (await getJson(`/pistachio/folder?folder=${encodeURIComponent(this.folder)}`));
    const plan = planOf(files, { videos: this.videos, maxBytes: place.max_bytes });
    if (cut) plan.refused.unshift({ path: cut, reason: say("drop.reason.many", { most: MOST_FILES }) });
    if (!plan.groups.length && !plan.loose.length && !plan.table) {
      const notes = plan.refused.map(({ path, reason }) => `${path}: ${reason}`);
      this.showResult(say(this.videos ? "drop.nothing.videos" : "drop.nothing"), notes, true);
      toast("error", say(this.videos ? "drop.nothing.videos" : "drop.nothing"), notes[0]);
      return;
    }
    const { into, fresh } = targetOf(place, plan.top);
    const folder = fresh === null ? into : await this.ask(place, plan.top, into, fresh);
    if (folder === null) return;
    this.upload = new Upload(plan, { folder, videos: this.videos, whenMoved: (progress) => this.showProgress(progress) });
    await this.send();
  }

  /** Where files go that are no part of the set on the node. @param {Place} place @param {string} top @param {string | null} into @param {string} fresh @returns {Promise<string | null>} */
  ask(place, top, into, fresh) {
    return new Promise((resolve) => {
      const title = top ? say("drop.ask", { top }) : say("drop.ask.files");
      const dialog = element("dialog", { className: "pistachio-folders ask", ariaLabel: title });
      let answer = /** @type {string | null} */ (null);
      const choice = (/** @type {string | null} */ folder, /** @type {string} */ words) => element("button", {
        textContent: words, onclick: () => {
          answer = folder;
          dialog.close();
        },
      });
      const own = choice(fresh, say("drop.ask.fresh", { folder: fresh }));
      own.className = "use";
      dialog.append(
        element("h2", "", title),
        element("p", "", say("drop.ask.words", { folder: place.folder, content: contentWords({ name: "", ...place }) })),
        ...(into === null ? [element("p", "", say("drop.ask.closed"))] : []),
        element("div", "foot", choice(null, say("folders.cancel")), ...(into === null ? [] : [choice(into, say("drop.ask.into", { folder: into }))]), own),
      );
      dialog.addEventListener("keydown", (event) => event.stopPropagation());
      dialog.addEventListener("close", () => {
        dialog.remove();
        resolve(answer);
      });
      document.body.append(dialog);
      dialog.showModal();
      own.focus();
    });
  }

  async send() {
    const upload = this.upload;
    if (!upload) return;
    this.showProgress({ done: upload.done, total: upload.total, share: 0, name: "" });
    try {
      await upload.run();
    } finally {
      if (!upload.stopped || upload.stopped === "cancelled") this.upload = null;
    }
    if (upload.outcome.added + upload.outcome.captions + upload.outcome.same > 0) this.folder = upload.folder;
    await this.read();
    window.dispatchEvent(new CustomEvent("pistachio-folder-changed", { detail: upload.folder }));
    if (upload.stopped === "unreachable") {
      this.showResult(say("drop.unreachable", { left: upload.total - upload.done }), [], true, button(say("drop.again.title"), () => this.send(), say("drop.again")));
      return;
    }
    const isBad = upload.outcome.refused.length > 0;
    if (upload.notes.length) this.showResult(upload.words, upload.notes, isBad);
    else this.hideResult(); // the pictures themselves say it
    toast(isBad ? "info" : "success", say("drop.done", { folder: upload.folder }), [upload.words, ...upload.notes.slice(0, 2)].join("\n"));
  }

  /** @param {import("./drop.mjs").Progress} progress */
  showProgress({ done, total, share, name }) {
    this.strip.hidden = true;
    this.result.hidden = false;
    this.result.classList.remove("problem");
    this.bar.hidden = false;
    this.bar.value = share;
    this.status.textContent = say("drop.progress", { done, total, name });
    this.status.title = "";
    if (!this.actions.children.length || !this.actions.dataset.runs) {
      this.actions.dataset.runs = "true";
      this.actions.replaceChildren(button(say("drop.stop.title"), () => this.upload?.cancel(), say("drop.stop")));
    }
    this.add.disabled = true;
  }

  /** @param {string} words @param {string[]} notes @param {boolean} isProblem @param {HTMLElement[]} more */
  showResult(words, notes, isProblem, ...more) {
    this.strip.hidden = true;
    this.result.hidden = false;
    this.result.classList.toggle("problem", isProblem);
    this.bar.hidden = true;
    this.status.textContent = words;
    this.status.title = [words, ...notes].join("\n");
    delete this.actions.dataset.runs;
    const details = notes.length ? [button(say("drop.details.title"), () => this.showNotes(words, notes), sayCounted("drop.details", notes.length))] : [];
    this.actions.replaceChildren(...more, ...details, button(say("drop.close.title"), () => this.hideResult(), say("drop.close")));
    this.add.disabled = Boolean(this.upload) || this.isGiven;
  }

  hideResult() {
    this.upload = null; // one that could not go on is given up
    this.result.hidden = true;
    this.strip.hidden = false;
    this.draw();
  }

  /** @param {string} words @param {string[]} notes */
  showNotes(words, notes) {
    const close = element("button", { className: "use", textContent: say("drop.close"), onclick: () => dialog.close() });
    const list = element("ul", { tabIndex: 0 }, ...notes.map((note) => element("li", "", note)));
    const dialog = element("dialog", { className: "pistachio-folders notes", ariaLabel: say("drop.details.title") }, element("h2", "", words), list, element("div", "foot", close));
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    close.focus();
  }
}

/** @type {Set<FolderView>} */
const views = new Set();

/** @param {CanvasNode} node @param {{videos: boolean}} takes */
function folderOnNode(node, takes) {
  const view = new FolderView(node, takes);
  views.add(view);
  node.onDragOver = hasFiles;
  node.onDragDrop = async (event) => {
    if (!event.dataTransfer || !hasFiles(event)) return false;
    // Answered at once: otherwise the host would load a workflow out of the first picture.
    view.take(droppedFiles(event.dataTransfer));
    return true;
  };
  whenSettled(node, ["folder"], READ_WAIT_MS, () => view.read());
  const { onConnectionsChange } = node;
  node.onConnectionsChange = function (...values) {
    onConnectionsChange?.apply(this, values);
    setTimeout(() => view.read()); // after the link is made
  };
  setTimeout(() => view.read()); // after the workflow has filled the widgets in
  whenRemoved(node, () => {
    views.delete(view);
    view.upload?.cancel();
  });
}

onNode("PistachioLoadImageFolder", (node) => folderOnNode(node, { videos: false }));
onNode("PistachioLoadVideoFolder", (node) => folderOnNode(node, { videos: true }));

/** A button that fills a widget, on nodes that write into a folder. @param {import("./host.mjs").CanvasNode} node @param {string} name of the widget */
function buttonOnNode(node, name) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  const choose = button(say("folders.choose.title"), async () => {
    const chosen = await chooseFolder(typeof widget.value === "string" ? widget.value : "", { mayBeNew: true });
    if (chosen === null) return;
    widget.value = chosen;
    widget.callback?.(chosen);
    redraw();
  }, say("folders.choose"));
  const root = element("div", "pistachio-folder button", choose);
  const shown = node.addDOMWidget("choose_folder", "pistachio_choose_folder", root, { serialize: false, hideOnZoom: false, getMinHeight: () => BUTTON_HEIGHT_PX, getMaxHeight: () => BUTTON_HEIGHT_PX });
  shown.serialize = false;
  node.setSize([node.size[0], node.size[1] + BUTTON_HEIGHT_PX]);
  setTimeout(redraw);
}

onNode("PistachioSaveToDataset", (node) => buttonOnNode(node, "folder"));
onNode("PistachioCharacterSheet", (node) => buttonOnNode(node, "folder"));

// In the older renderer the canvas hears nothing of what happens over an element, and the host would load a workflow.
for (const type of /** @type {const} */ (["dragover", "drop"])) {
  document.addEventListener(type, (event) => {
    if (!(event.target instanceof Element) || !event.target.closest(OTHER_DOM) || !hasFiles(event)) return;
    const node = nodeAt(event);
    const view = [...views].find((each) => each.node === node);
    if (!view || !event.dataTransfer) return;
    event.preventDefault();
    event.stopPropagation();
    if (type === "drop") view.take(droppedFiles(event.dataTransfer));
  }, { capture: true });
}

onMessage("reconnected", () => {
  for (const view of views) {
    view.read();
    if (view.upload?.stopped === "unreachable") view.send();
  }
});
for (const type of ["execution_success", "execution_error", "execution_interrupted"]) onMessage(type, () => views.forEach((view) => view.read()));
