// @ts-check
/**
 * The live panel: a run's progress, curve and words as one DOM element, and the buttons that ask something of it.
 * `show` may be called as often as messages come; it redraws at most ten times a second.
 */

import { drawChart, frameOf, stepAt } from "./chart.mjs";
import { addStylesheet, element } from "./elements.mjs";
import { duration, signed, speed } from "./history.mjs";
import { url } from "./host.mjs";

export const MIN_HEIGHT_PX = 260;
const REDRAW_INTERVAL_MS = 100;
const THUMBNAIL_PX = 256;
const OPENED_PX = 1024;

addStylesheet("panel.css");

const DRAG_PX = 6; // less is a click

/** @typedef {"evaluate" | "sample" | "stop" | "continue"} Action */

/** What a button says, what it does in words, and in which states of the run it is there. @type {[Action, string, string, string[]][]} */
const ACTIONS = [
  ["stop", "Stop and keep", "Measures the weights as they are, and ends the run with the best checkpoint so far", ["running"]],
  ["evaluate", "Evaluate now", "Measures the held-out pictures after this step and keeps a checkpoint", ["running"]],
  ["sample", "Sample now", "Makes the pictures of Sample Settings after this step", ["running"]],
  ["continue", "Continue by half", "Queues the graph with half as many steps again, from the run's end", ["finished"]],
];

export class Panel {
  /** @param {((action: Action) => Promise<void>) | null} act null where the run is only looked at */
  constructor(act = null) {
    this.act = act;
    /** @type {import("./chart.mjs").View} */
    this.view = { steps: null, isLog: false, hovered: null };
    this.steps = element("span", "steps");
    this.status = element("span", "status");
    this.change = element("span", "change");
    this.done = element("div", "");
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.hint = element("div", "hint");
    this.hint.textContent = "Train LoRA draws the loss on the held-out pictures here.";
    this.plot = element("div", "plot", this.svg, this.hint);
    this.trained = element("span", "trained", "training pictures");
    this.log = element("button", { className: "log", textContent: "log", title: "Equal shares of the loss are equally high", ariaPressed: "false" });
    this.log.onclick = () => {
      this.view.isLog = !this.view.isLog;
      this.log.ariaPressed = String(this.view.isLog);
      this.draw();
    };
    this.whole = element("button", { className: "whole", textContent: "whole run", title: "Show all steps again", onclick: () => this.zoom(null) });
    this.legend = element(
      "div", "legend", element("span", "held", "held-out pictures, change against the base"), this.trained,
      element("span", "noisy", "training loss (noisy; not used to choose)"), this.whole, this.log,
    );
    this.actions = element("div", "actions");
    this.samples = element("div", "samples");
    this.words = element("div", "words");
    this.head = element("div", "head", this.steps, this.status, this.change);
    this.bar = element("div", "bar", this.done);
    this.root = element("div", "pistachio-panel", this.head, this.bar, this.plot, this.legend, this.samples, this.words, this.actions);
    // Scrolling the words must not zoom the canvas.
    this.words.addEventListener("wheel", (event) => {
      if (this.words.scrollHeight > this.words.clientHeight) event.stopPropagation();
    });
    /** @type {import("./history.mjs").History | null} */
    this.history = null;
    this.shownSamples = "";
    this.timer = 0;
    new ResizeObserver(() => this.schedule()).observe(this.plot);
    this.watchPointer();
    this.addActions();
  }

  /** Numbers under the pointer; a drag over steps zooms in. */
  watchPointer() {
    /** @type {number | null} */
    let pressedAt = null;
    const place = (/** @type {PointerEvent} */ event) => {
      const box = this.plot.getBoundingClientRect();
      return ((event.clientX - box.left) * this.plot.clientWidth) / box.width; // the canvas may be zoomed
    };
    const step = (/** @type {number} */ x) => (this.history ? stepAt(frameOf(this.history, this.view, this.plot.clientWidth, this.plot.clientHeight), x) : 0);
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.history) return;
      pressedAt = place(event);
      event.stopPropagation(); // not a drag of the node
    });
    this.plot.addEventListener("pointermove", (event) => {
      this.view.hovered = step(place(event));
      this.draw();
    });
    this.plot.addEventListener("pointerup", (event) => {
      const from = pressedAt, to = place(event);
      pressedAt = null;
      if (from !== null && Math.abs(to - from) > DRAG_PX) this.zoom([Math.min(step(from), step(to)), Math.max(step(from), step(to))]);
    });
    this.plot.addEventListener("pointerleave", () => {
      pressedAt = null;
      this.view.hovered = null;
      this.draw();
    });
    this.plot.addEventListener("dblclick", () => this.zoom(null));
  }

  /** @param {[number, number] | null} steps */
  zoom(steps) {
    if (steps && steps[1] - steps[0] < 2) return;
    this.view.steps = steps && [Math.floor(steps[0]), Math.ceil(steps[1])];
    this.draw();
  }

  addActions() {
    const act = this.act;
    if (!act) return;
    for (const [action, words, title] of ACTIONS) {
      const button = element("button", { textContent: words, title });
      button.dataset.action = action;
      button.onclick = async () => {
        button.disabled = true;
        await act(action);
        button.disabled = false;
      };
      this.actions.append(button);
    }
  }

  /** @param {import("./history.mjs").History | null} history */
  show(history) {
    this.history = history;
    this.schedule();
  }

  schedule() {
    if (this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.draw();
    }, REDRAW_INTERVAL_MS);
  }

  draw() {
    const history = this.history;
    const isEmpty = !history || history.status === "new";
    for (const part of [this.head, this.bar, this.svg, this.legend, this.actions]) part.toggleAttribute("hidden", isEmpty);
    this.hint.toggleAttribute("hidden", !isEmpty);
    if (!history || isEmpty) {
      this.words.textContent = "";
      this.drawSamples(null);
      return;
    }
    this.steps.textContent = `Step ${history.step} of ${history.numSteps}`;
    this.status.textContent = statusWords(history);
    this.done.style.width = `${(100 * history.step) / Math.max(1, history.numSteps)}%`;
    this.drawChange(history);
    this.drawSamples(history);
    this.trained.toggleAttribute("hidden", history.trained.length < 2);
    this.whole.toggleAttribute("hidden", this.view.steps === null);
    for (const button of /** @type {HTMLButtonElement[]} */ ([...this.actions.children]))
      button.toggleAttribute("hidden", !ACTIONS.some(([action, , , states]) => action === button.dataset.action && states.includes(history.status)));
    const verdict = history.status === "finished" ? history.verdict : "";
    this.words.textContent = verdict || history.note;
    this.words.classList.toggle("verdict", Boolean(verdict));
    const { clientWidth, clientHeight } = this.plot;
    if (clientWidth && clientHeight) drawChart(this.svg, history, this.view, clientWidth, clientHeight);
  }

  /** The latest pictures; anew only when they are others. @param {import("./history.mjs").History | null} history */
  drawSamples(history) {
    const samples = history?.samples;
    const shown = samples ? `${history.run} ${samples.step}` : "";
    if (shown === this.shownSamples) return;
    this.shownSamples = shown;
    this.samples.replaceChildren(...(samples?.pictures ?? []).map((picture) => sampleElement(samples?.step ?? 0, picture)));
  }

  /** @param {import("./history.mjs").History} history */
  drawChange(history) {
    const chosen = history.evaluations.find((evaluation) => evaluation.step === history.chosenStep);
    const shown = chosen ?? history.evaluations.at(-1);
    this.change.textContent = shown && shown.step > 0 ? signed(shown.percent) : "";
    this.change.classList.toggle("worse", Boolean(shown && shown.percent > 0));
    this.change.title = shown ? `Held-out loss at step ${shown.step} against the base` : "";
  }
}

/** @param {number} step @param {{thumbnail: string, prompt: string, with_trigger: boolean}} picture */
function sampleElement(step, picture) {
  const address = (/** @type {number} */ size) => url(`/pistachio/thumbnail?file=${encodeURIComponent(picture.thumbnail)}&size=${size}`);
  const image = document.createElement("img");
  image.src = address(THUMBNAIL_PX);
  image.alt = picture.prompt;
  const link = element("a", picture.with_trigger ? "with-trigger" : "", image);
  link.href = address(OPENED_PX);
  link.target = "_blank";
  link.title = `Step ${step}, ${picture.with_trigger ? "with" : "without"} the trigger word: ${picture.prompt}`;
  return link;
}

/** @param {import("./history.mjs").History} history */
function statusWords(history) {
  if (history.status === "finished") return history.chosenStep ? `finished, step ${history.chosenStep} chosen` : "finished";
  if (history.status === "interrupted") return "saved; queue again to go on";
  const left = history.secondsLeft === null ? "training" : `${duration(history.secondsLeft)} left`;
  return [left, history.phase || speed(history.secondsPerStep)].filter(Boolean).join(", ");
}
