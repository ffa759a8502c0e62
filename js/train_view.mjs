// @ts-check
/**
 * Gives every Train LoRA node its live panel and feeds it.
 * Messages are not repeated to a page that was reloaded or lost its connection: feed.mjs asks for the history then.
 */

import { mayStop } from "./commands.mjs";
import { continueFurther } from "./continue.mjs";
import { Feed } from "./feed.mjs";
import { getJson, inputNode, onMessage, onNode, postJson, toast } from "./host.mjs";
import { Panel } from "./panel.mjs";
import { say } from "./words.mjs";

const MESSAGES = {
  "pistachio.step": "train",
  "pistachio.evaluation": "eval",
  "pistachio.probe": "probe",
  "pistachio.phase": "phase",
  "pistachio.note": "note",
  "pistachio.sample": "sample",
  "pistachio.finished": "finished",
};
const ON_ALL = "-all"; // what a run's name gets that is trained on all pictures

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

class TrainView {
  /** @param {CanvasNode} node */
  constructor(node) {
    this.node = node;
    this.panel = new Panel((action) => this.act(action));
    this.room = this.panel.minHeight;
    this.feed = new Feed(
      (run) => getJson(`/pistachio/runs/${encodeURIComponent(run)}/history`),
      (history) => {
        this.panel.show(history);
        this.makeRoom();
      },
      (error) => console.warn("Pistachio: the run's history can't be read.", error), // a stopped server; the next message asks again
    );
    const widget = node.addDOMWidget("live", "pistachio_panel", this.panel.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.panel.minHeight,
    });
    widget.serialize = false;
    Object.assign(widget, { label: say("form.curve") }); // what app mode's form calls it
  }

  /** The node grows once, when there is more to show than fits; it never shrinks by itself. */
  makeRoom() {
    if (this.panel.minHeight <= this.room) return;
    this.room = this.panel.minHeight;
    const [width, height] = this.node.size, needed = this.node.computeSize()[1];
    if (height < needed) this.node.setSize([width, needed]);
  }

  /** The run that the node would train; null where another node says so while it runs. */
  get runName() {
    const widget = inputNode(this.node, "continue_run")?.widgets?.find(({ name }) => name === "run")
      ?? this.node.widgets?.find(({ name }) => name === "run_name");
    return inputNode(this.node, "run_name") || typeof widget?.value !== "string" ? null : widget.value.trim();
  }

  /** @param {string | null} run */
  load(run) {
    if (run) this.feed.load(run);
  }

  /** @param {import("./panel.mjs").Action} action */
  async act(action) {
    const history = this.feed.history;
    if (!history) return;
    try {
      if (action === "stop" && !(await mayStop(history.run))) return;
      if (action === "continue") await continueFurther(this.node, history);
      else await postJson(`/pistachio/runs/${encodeURIComponent(history.run)}/ask`, { wish: action }).then(({ status, body }) => {
        if (status >= 400) throw new Error(body?.error ?? `HTTP ${status}`);
      });
    } catch (error) {
      toast("error", history.run, String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {string} kind @param {any} data */
  receive(kind, data) {
    if (!isNode(this.node, data.node_id)) return;
    // A node of another workflow may have the same number.
    const name = this.runName;
    if (name !== null && data.run !== name && data.run !== name + ON_ALL) return;
    this.panel.prepare("");
    this.feed.receive(kind, data);
  }

  /** The bar of the node that fills the cache, before there is anything to train. @param {{node: string, value: number, max: number}} progress */
  prepare({ node, value, max }) {
    const source = inputNode(this.node, "encoded");
    if (source && isNode(source, node)) this.panel.prepare(value < max ? say("panel.preparing", { done: value, all: max }) : "");
  }
}

/** @param {CanvasNode} node @param {string} id of a message; in a subgraph it is a path that ends in the node's own */
function isNode(node, id) {
  return String(id ?? "").split(":").at(-1) === String(node.id);
}

/** @type {Set<TrainView>} */
const views = new Set();

onNode("PistachioTrainLora", (node) => {
  const view = new TrainView(node);
  views.add(view);
  // After the workflow has filled the widgets in, where the node comes from one.
  setTimeout(() => view.load(view.runName));
  const widget = node.widgets?.find(({ name }) => name === "run_name");
  const before = widget?.callback;
  if (widget) {
    widget.callback = function (...values) {
      const result = before?.apply(this, values);
      view.load(view.runName);
      return result;
    };
  }
  const removed = node.onRemoved;
  node.onRemoved = function () {
    views.delete(view);
    removed?.call(this);
  };
});

for (const [message, kind] of Object.entries(MESSAGES)) {
  onMessage(message, (data) => views.forEach((view) => view.receive(kind, data)));
}

const reload = () => views.forEach((view) => {
  view.panel.prepare("");
  view.feed.reload();
});
for (const message of ["reconnected", "execution_interrupted", "execution_error"]) onMessage(message, reload);
onMessage("progress", (data) => views.forEach((view) => view.prepare(data)));
onMessage("executed", (data) => {
  // A finished run that is queued again sends nothing but this.
  for (const view of views) if (isNode(view.node, data.node)) view.load(view.runName ?? view.feed.history?.run ?? null);
});
document.addEventListener("visibilitychange", () => {
  // A page that slept may have missed messages without noticing that its connection was lost.
  if (document.visibilityState === "visible") views.forEach((view) => view.feed.history?.status === "running" && view.feed.reload());
});
