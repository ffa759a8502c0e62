// @ts-check
/**
 * The live panel: a run's progress, curve and words as one DOM element.
 * `show` may be called as often as messages come; it redraws at most ten times a second.
 */

import { drawChart } from "./chart.mjs";
import { addStylesheet, element } from "./elements.mjs";
import { duration, signed } from "./history.mjs";
import { url } from "./host.mjs";

export const MIN_HEIGHT_PX = 260;
const REDRAW_INTERVAL_MS = 100;
const THUMBNAIL_PX = 256;
const OPENED_PX = 1024;

addStylesheet("panel.css");

export class Panel {
  constructor() {
    this.steps = element("span", "steps");
    this.status = element("span", "status");
    this.change = element("span", "change");
    this.done = element("div", "");
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.hint = element("div", "hint");
    this.hint.textContent = "Train LoRA draws the loss on the held-out pictures here.";
    this.plot = element("div", "plot", this.svg, this.hint);
    const heldOut = element("span", "");
    heldOut.textContent = "held-out pictures, change against the base";
    const training = element("span", "");
    training.textContent = "training loss (noisy)";
    this.legend = element("div", "legend", heldOut, training);
    this.samples = element("div", "samples");
    this.words = element("div", "words");
    this.head = element("div", "head", this.steps, this.status, this.change);
    this.bar = element("div", "bar", this.done);
    this.root = element("div", "pistachio-panel", this.head, this.bar, this.plot, this.legend, this.samples, this.words);
    // Scrolling the words must not zoom the canvas.
    this.words.addEventListener("wheel", (event) => {
      if (this.words.scrollHeight > this.words.clientHeight) event.stopPropagation();
    });
    /** @type {import("./history.mjs").History | null} */
    this.history = null;
    this.shownSamples = "";
    this.timer = 0;
    new ResizeObserver(() => this.schedule()).observe(this.plot);
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
    for (const part of [this.head, this.bar, this.svg, this.legend]) part.toggleAttribute("hidden", isEmpty);
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
    const verdict = history.status === "finished" ? history.verdict : "";
    this.words.textContent = verdict || history.note;
    this.words.classList.toggle("verdict", Boolean(verdict));
    const { clientWidth, clientHeight } = this.plot;
    if (clientWidth && clientHeight) drawChart(this.svg, history, clientWidth, clientHeight);
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
  return history.secondsLeft === null ? "training" : `${duration(history.secondsLeft)} left`;
}
