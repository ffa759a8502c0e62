// @ts-check
/**
 * Gives every Train LoRA node its live panel and feeds it.
 * Messages are not repeated to a page that was reloaded or lost its connection; the history is asked for then.
 */

import { continueByHalf } from "./continue.mjs";
import { getJson, inputNode, onMessage, onNode, postJson, toast } from "./host.mjs";
import { addRow, emptyHistory, fromServer } from "./history.mjs";
import { MIN_HEIGHT_PX, Panel } from "./panel.mjs";

const MESSAGES = {
  "pistachio.step": "train",
  "pistachio.evaluation": "eval",
  "pistachio.probe": "probe",
  "pistachio.phase": "phase",
  "pistachio.note": "note",
  "pistachio.sample": "sample",
  "pistachio.finished": "finished",
};

/** @typedef {import("./host.mjs").CanvasNode} CanvasNode */

class TrainView {
  /** @param {CanvasNode} node */
  constructor(node) {
    this.node = node;
    this.panel = new Panel((action) => this.act(action));
    /** @type {import("./history.mjs").History | null} */
    this.history = null;
    this.asked = 0;
    /** @type {any[] | null} rows that come while the history is asked for: the answer may lack them */
    this.meanwhile = null;
    const widget = node.addDOMWidget("live", "pistachio_panel", this.panel.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => MIN_HEIGHT_PX,
    });
    widget.serialize = false;
  }

  /** The run that the node would train; null where another node says so while it runs. */
  get runName() {
    const widget = inputNode(this.node, "continue_run")?.widgets?.find(({ name }) => name === "run")
      ?? this.node.widgets?.find(({ name }) => name === "run_name");
    return inputNode(this.node, "run_name") || typeof widget?.value !== "string" ? null : widget.value.trim();
  }

  /** @param {import("./panel.mjs").Action} action */
  async act(action) {
    const run = this.history?.run;
    if (!run) return;
    try {
      if (action === "continue") await continueByHalf(this.node, run, this.history?.numSteps ?? 0);
      else await postJson(`/pistachio/runs/${encodeURIComponent(run)}/ask`, { wish: action }).then(({ status, body }) => {
        if (status >= 400) throw new Error(body?.error ?? `HTTP ${status}`);
      });
    } catch (error) {
      toast("error", run, String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {string} nodeId of a message; in a subgraph it is a path that ends in the node's own */
  isMeant(nodeId) {
    return String(nodeId ?? "").split(":").at(-1) === String(this.node.id);
  }

  /** @param {string | null} run */
  async load(run) {
    if (!run) return;
    const question = ++this.asked;
    this.meanwhile = [];
    const details = await getJson(`/pistachio/runs/${encodeURIComponent(run)}`);
    if (question !== this.asked) return; // a later question was asked meanwhile
    const rows = this.meanwhile.filter((row) => row.run === run);
    this.meanwhile = null;
    this.history = details ? fromServer(details) : rows.length ? emptyHistory(run) : null;
    if (this.history && this.history.status !== "finished") for (const row of rows) addRow(this.history, row);
    this.panel.show(this.history);
  }

  /** @param {string} kind @param {any} data */
  receive(kind, data) {
    if (!this.history || this.history.run !== data.run) {
      this.history = emptyHistory(data.run);
      this.load(data.run); // what came before this page did
    } else if (this.history.status !== "running" && kind !== "finished") {
      this.history.status = "running"; // it is resumed or continued
      this.history.chosenStep = null;
    }
    const row = { ...data, kind };
    this.meanwhile?.push(row);
    addRow(this.history, row);
    this.panel.show(this.history);
  }
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
  onMessage(message, (data) => {
    for (const view of views) if (view.isMeant(data.node_id)) view.receive(kind, data);
  });
}

const reload = () => views.forEach((view) => view.load(view.history?.run ?? view.runName));
onMessage("reconnected", reload);
onMessage("execution_interrupted", reload);
onMessage("execution_error", reload);
onMessage("executed", (data) => {
  // A finished run that is queued again sends nothing but this.
  for (const view of views) if (view.isMeant(data.node)) view.load(view.runName ?? view.history?.run ?? null);
});
