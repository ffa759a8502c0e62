// @ts-check
/**
 * The offer on Load JoyCaption to download its model, where it is not on this machine: a repository of many files, which the host's
 * own dialog of missing models can't take. Shows nothing where the model is there.
 */

import { element } from "./elements.mjs";
import { addUnseen, getJson, inputNode, onMessage, onNode, postJson, toast, whenRemoved, whenSettled } from "./host.mjs";
import { button } from "./review_parts.mjs";
import { say, sayNumber } from "./words.mjs";

const HEIGHT_PX = 84 + 2 * 10; // with the margin that the older renderer leaves
const ASK_INTERVAL_MS = 1000;
const READ_WAIT_MS = 300;

/**
 * @typedef {import("./host.mjs").CanvasNode} CanvasNode
 * @typedef {{state: "here" | "missing" | "running" | "failed", folder: string, done_bytes?: number, total_bytes?: number, approximate_bytes?: number, free_bytes?: number, error?: string, is_own?: boolean}} State
 */

/** @param {number} bytes */
const gigabytes = (bytes) => sayNumber(bytes / 1e9, { minimumFractionDigits: 1, maximumFractionDigits: 1 });

let isTold = false; // once a page is enough

class CaptionerView {
  /** @param {CanvasNode} node */
  constructor(node) {
    this.node = node;
    this.words = element("div", "words");
    this.words.setAttribute("role", "status");
    this.bar = element("progress", { max: 1, value: 0, ariaLabel: say("captioner.progress") });
    this.get = button(say("captioner.get.title"), () => this.change("download"), say("captioner.get"));
    this.get.className = "get";
    this.stop = button(say("captioner.stop.title"), () => this.change("cancel"), say("captioner.stop"));
    this.root = element("div", "pistachio-captioner", this.words, element("div", "foot", this.bar, this.get, this.stop));
    for (const type of ["keydown", "keyup"]) this.root.addEventListener(type, (event) => event.stopPropagation());
    this.place = addUnseen(node, "captioner", this.root, () => HEIGHT_PX);
    this.timer = 0;
    this.asked = 0;
  }

  /** @param {string} name */
  value(name) {
    const value = inputNode(this.node, name) ? "" : this.node.widgets?.find((widget) => widget.name === name)?.value;
    return typeof value === "string" ? value : "";
  }

  async read() {
    clearTimeout(this.timer);
    const question = ++this.asked;
    try {
      const query = new URLSearchParams({ model: this.value("model"), local_folder: this.value("local_folder") });
      const state = /** @type {State} */ (await getJson(`/pistachio/captioner?${query}`));
      if (question === this.asked) this.show(state);
    } catch (error) {
      if (question !== this.asked || error instanceof TypeError) return; // the connection is told of elsewhere
      this.showError(String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {"download" | "cancel"} change */
  async change(change) {
    try {
      const { status, body } = await postJson(`/pistachio/captioner/${change}`, { model: this.value("model") });
      if (status !== 200) throw new Error(body?.error ?? `HTTP ${status}`);
      this.show(body);
    } catch (error) {
      this.showError(String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {State} state */
  show(state) {
    const { done_bytes: done = 0, total_bytes: total = 0, approximate_bytes: about = 0, free_bytes: free = 0 } = state;
    if (state.state === "here" && this.root.hidden) return;
    const size = total || about;
    this.place();
    this.root.classList.toggle("failed", state.state === "failed");
    this.bar.hidden = state.state !== "running";
    this.bar.value = size ? done / size : 0;
    this.get.hidden = state.state === "here" || state.state === "running";
    this.stop.hidden = state.state !== "running";
    this.get.textContent = state.state === "failed" ? say("captioner.again") : done > 0 ? say("captioner.go_on") : say("captioner.get");
    if (state.state === "here") this.words.textContent = say(state.is_own ? "captioner.own" : "captioner.here");
    else if (state.state === "running") this.words.textContent = say("captioner.running", { done: gigabytes(done), total: gigabytes(size) });
    else if (state.state === "failed") this.words.textContent = state.error ?? "";
    else if (done > 0) this.words.textContent = say("captioner.part", { done: gigabytes(done), total: gigabytes(size) });
    else this.words.textContent = say("captioner.missing", { total: gigabytes(size), free: gigabytes(free) });
    this.words.title = `${this.words.textContent}\n${state.folder}`;
    if (state.state === "running") this.timer = window.setTimeout(() => this.read(), ASK_INTERVAL_MS);
    else if (state.state === "missing" && !isTold) {
      isTold = true;
      toast("info", say("captioner.toast"), say("captioner.toast.words", { total: gigabytes(size) }));
    }
  }

  /** @param {string} words */
  showError(words) {
    this.place();
    this.root.classList.add("failed");
    this.words.textContent = this.words.title = words;
    this.bar.hidden = this.get.hidden = this.stop.hidden = true;
  }
}

/** @type {Set<CaptionerView>} */
const views = new Set();

onNode("PistachioLoadJoyCaption", (node) => {
  const view = new CaptionerView(node);
  views.add(view);
  whenSettled(node, ["model", "local_folder"], READ_WAIT_MS, () => view.read());
  setTimeout(() => view.read()); // after the workflow has filled the widgets in
  whenRemoved(node, () => {
    views.delete(view);
    clearTimeout(view.timer);
  });
});

// Caption Dataset downloads it too.
for (const type of ["reconnected", "execution_success", "execution_error", "execution_interrupted"]) onMessage(type, () => views.forEach((view) => view.read()));
