// @ts-check
/**
 * Gives every Train LoRA node its live panel and feeds it.
 * Messages are not repeated to a page that was reloaded or lost its connection: feed.mjs asks for the history then.
 */

import { mayStop } from "./commands.mjs";
import { ON_ALL, continueFurther, keepRun, runOf, runWritten } from "./continue.mjs";
import { Feed, MESSAGES } from "./feed.mjs";
import { getJson, inputNode, nodeOf, onMessage, onNode, postJson, redraw, toast, workflowId, workflowOf } from "./host.mjs";
import { Panel } from "./panel.mjs";
import { say } from "./words.mjs";

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
    redraw(); // the older renderer draws the frame only when it has to
  }

  /** The node's run, as far as it is known. */
  load() {
    const run = runOf(this.node) ?? this.feed.history?.run;
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

  /** A node of another workflow may have the same number. @param {string} run @param {unknown} workflow that it is trained by; null where no canvas sent it */
  isOurs(run, workflow) {
    const name = runWritten(this.node);
    return name === null ? (workflow ?? workflowId()) === workflowId() : run === name || run === name + ON_ALL;
  }

  /** @param {string} kind @param {any} data */
  receive(kind, data) {
    if (nodeOf(data.node_id) !== this.node || !this.isOurs(data.run, data.workflow)) return;
    keepRun(this.node, data.run);
    this.panel.prepare("");
    this.feed.receive(kind, data);
  }

  /** What the node gave at its end; a finished run that is queued again sends nothing but this. @param {any} data */
  ended({ display_node: displayed, node, output }) {
    if (nodeOf(displayed ?? node) !== this.node) return;
    const [told] = output?.pistachio_run ?? [];
    if (told && this.isOurs(told.run, told.workflow)) keepRun(this.node, told.run);
    this.load();
  }

  /** The bar of the node that fills the cache, before there is anything to train. @param {{node: string, value: number, max: number, prompt_id: string}} progress */
  async prepare({ node, value, max, prompt_id: prompt }) {
    const source = inputNode(this.node, "encoded");
    if (!source || nodeOf(node) !== source || (await workflowOf(prompt)) !== workflowId()) return;
    this.panel.prepare(value < max ? say("panel.preparing", { done: value, all: max }) : "");
  }
}

/** @type {Set<TrainView>} */
const views = new Set();

onNode("PistachioTrainLora", (node) => {
  const view = new TrainView(node);
  views.add(view);
  // After the workflow has filled the widgets in, where the node comes from one.
  setTimeout(() => view.load());
  const widget = node.widgets?.find(({ name }) => name === "run_name");
  const before = widget?.callback;
  if (widget) {
    widget.callback = function (...values) {
      const result = before?.apply(this, values);
      view.load();
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
onMessage("executed", (data) => views.forEach((view) => view.ended(data)));
document.addEventListener("visibilitychange", () => {
  // A page that slept may have missed messages without noticing that its connection was lost.
  if (document.visibilityState === "visible") views.forEach((view) => view.feed.history?.status === "running" && view.feed.reload());
});
