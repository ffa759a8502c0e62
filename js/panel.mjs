// @ts-check
/**
 * The live panel: a run's progress, curve, memory, samples and words as one DOM element, and the buttons that ask something of it.
 * `show` may be called as often as messages come: it draws once a frame, and only what is seen.
 */

import { Chart, frameOf, nearest, readout, stepAt } from "./chart.mjs";
import { addStylesheet, element } from "./elements.mjs";
import { getJson } from "./host.mjs";
import { duration, furtherSteps, signed, speed } from "./history.mjs";
import { MemoryLine } from "./memory_line.mjs";
import { News } from "./news.mjs";
import { SampleStrip } from "./sample_strip.mjs";
import { setting } from "./settings.mjs";
import { traceOf } from "./trace.mjs";
import { say } from "./words.mjs";

const MIN_HEIGHT_PX = 260, MIN_HEIGHT_WITH_SAMPLES_PX = 420;
const WIDGET_MARGIN_PX = 10; // that the host leaves around a widget's element
const DETAIL_MS = 1500; // between two questions for a part that still grows
const DRAG_PX = 6; // less is a click
const LOOK_INTERVAL_MS = 15_000; // at a run that tells nothing

addStylesheet("panel.css");

/** @typedef {import("./history.mjs").History} History */
/** @typedef {"evaluate" | "sample" | "stop" | "continue"} Action */

/** What a button says and does, and in which states of the run it is there. @type {[Action, import("./words.mjs").PlainKey, import("./words.mjs").PlainKey, string[]][]} */
const ACTIONS = [
  ["stop", "panel.stop", "panel.stop.title", ["running"]],
  ["evaluate", "panel.evaluate", "panel.evaluate.title", ["running"]],
  ["sample", "panel.sample", "panel.sample.title", ["running"]],
  ["continue", "panel.continue", "panel.continue.title", ["finished"]],
];

/** @type {Record<string, import("./words.mjs").PlainKey>} */
const PHASES = {
  loading: "panel.phase.loading", caching: "panel.phase.caching", training: "panel.phase.training", evaluating: "panel.phase.evaluating",
  sampling: "panel.phase.sampling",
};

export class Panel {
  /** @param {((action: Action) => Promise<void>) | null} act null where the run is only looked at */
  constructor(act = null) {
    this.act = act;
    /** @type {import("./chart.mjs").View} */
    this.view = { steps: null, isLog: setting("Pistachio.Chart.LogScale") };
    /** @type {number | null} step under the pointer, or that the keys have come to */
    this.pointed = null;
    this.steps = element("span", "steps");
    this.phase = element("span", "phase");
    this.status = element("span", "status");
    this.change = element("span", "change");
    this.done = element("div", "");
    this.bar = element("div", { className: "bar", role: "progressbar", ariaLabel: say("panel.progress") }, this.done);
    this.chart = new Chart();
    this.hint = element("div", { className: "hint", textContent: say("panel.hint") });
    this.readout = element("div", { className: "readout", hidden: true, ariaLive: "polite" });
    this.plot = element("div", { className: "plot", tabIndex: 0, role: "group", ariaLabel: say("panel.chart.keys") }, this.chart.svg, this.chart.over, this.hint, this.readout);
    this.trained = element("span", "trained");
    this.log = element("button", { className: "log", textContent: say("panel.log"), title: say("panel.log.title"), ariaPressed: String(this.view.isLog) });
    this.log.onclick = () => {
      this.view.isLog = !this.view.isLog;
      this.log.ariaPressed = String(this.view.isLog);
      this.draw();
    };
    this.whole = element("button", { className: "whole", textContent: say("panel.whole"), title: say("panel.whole.title"), onclick: () => this.zoom(null) });
    this.legend = element(
      "div", "legend", element("span", { className: "held", textContent: say("panel.legend.held_out") }), this.trained,
      element("span", { className: "noisy", textContent: say("panel.legend.noisy") }), this.whole, this.log,
    );
    this.memory = new MemoryLine();
    this.samples = new SampleStrip();
    this.words = element("div", { className: "words", role: "status" });
    this.actions = element("div", "actions");
    this.head = element("div", "head", this.steps, this.phase, this.status, this.change);
    this.root = element(
      "div", { className: "pistachio-panel", role: "region", ariaLabel: say("panel.label") },
      this.head, this.bar, this.plot, this.legend, this.memory.root, this.samples.root, this.words, this.actions,
    );
    // Scrolling the words must not zoom the canvas.
    this.words.addEventListener("wheel", (event) => {
      if (this.words.scrollHeight > this.words.clientHeight) event.stopPropagation();
    });
    /** @type {History | null} */
    this.history = null;
    this.preparing = "";
    this.news = new News();
    this.frame = this.look = 0;
    this.width = this.height = 0;
    /** @type {{run: string, first: number, last: number, revision: number, trace: import("./trace.mjs").Trace} | null} */
    this.detail = null;
    this.detailAskedAt = -Infinity;
    new ResizeObserver(([entry]) => {
      // Of the page's layout, however far the canvas is zoomed; 0 where the panel is not seen.
      this.width = Math.round(entry.contentRect.width);
      this.height = Math.round(entry.contentRect.height);
      this.schedule();
    }).observe(this.plot);
    this.watchPointer();
    this.watchKeys();
    this.addActions();
  }

  // ---- asking it ----------------------------------------------------------

  /** Numbers under the pointer; a drag over steps zooms in. */
  watchPointer() {
    /** @type {number | null} */
    let pressedAt = null;
    const place = (/** @type {PointerEvent} */ event) => {
      const box = this.plot.getBoundingClientRect();
      return ((event.clientX - box.left) * this.width) / box.width; // the canvas may be zoomed
    };
    const step = (/** @type {number} */ x) => (this.history ? stepAt(this.chart.frame ?? frameOf(this.history, this.view, this.width, this.height), x) : 0);
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.history) return;
      pressedAt = place(event);
      event.stopPropagation(); // not a drag of the node
    });
    this.plot.addEventListener("pointermove", (event) => this.point(step(place(event))));
    this.plot.addEventListener("pointerup", (event) => {
      const from = pressedAt, to = place(event);
      pressedAt = null;
      if (from !== null && Math.abs(to - from) > DRAG_PX) this.zoom([Math.min(step(from), step(to)), Math.max(step(from), step(to))]);
    });
    this.plot.addEventListener("pointerleave", () => {
      pressedAt = null;
      this.point(null);
    });
    this.plot.addEventListener("dblclick", () => this.zoom(null));
  }

  /** Left and right go from one measurement to the next, + and − zoom, 0 shows the whole run. */
  watchKeys() {
    this.plot.addEventListener("keydown", (event) => {
      const history = this.history;
      if (!history || event.ctrlKey || event.metaKey || event.altKey) return;
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
      if (move) this.pointTo(history, move);
      else if (factor) this.zoomAround(history, factor);
      else if (event.key === "0") this.zoom(null);
      else return;
      event.preventDefault();
      event.stopPropagation(); // the canvas has keys of its own
    });
    this.plot.addEventListener("blur", () => this.point(null));
  }

  /** @param {History} history @param {number} move */
  pointTo({ evaluations }, move) {
    const [first, last] = this.view.steps ?? [0, Infinity];
    const shown = evaluations.filter(({ step }) => step >= first && step <= last);
    if (!shown.length) return;
    const now = this.pointed === null ? null : nearest(shown, this.pointed);
    const at = now === null ? (move > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, shown.indexOf(now) + move));
    this.point(shown[at].step);
  }

  /** @param {History} history @param {number} factor */
  zoomAround(history, factor) {
    const whole = Math.max(history.numSteps, history.step, 1);
    const [first, last] = this.view.steps ?? [0, whole];
    const middle = this.pointed ?? (first + last) / 2, half = ((last - first) * factor) / 2;
    this.zoom(2 * half >= whole ? null : [Math.max(0, middle - half), Math.min(whole, middle + half)]);
  }

  /** @param {[number, number] | null} steps */
  zoom(steps) {
    if (steps && steps[1] - steps[0] < 2) return;
    this.view.steps = steps && [Math.floor(steps[0]), Math.ceil(steps[1])];
    this.detail = null;
    this.detailAskedAt = -Infinity;
    this.draw();
  }

  addActions() {
    const act = this.act;
    if (!act) return;
    for (const [action, words, title] of ACTIONS) {
      const button = element("button", { textContent: say(words), title: say(title) });
      button.dataset.action = action;
      button.onclick = async () => {
        button.disabled = true;
        await act(action);
        button.disabled = false;
      };
      this.actions.append(button);
    }
  }

  // ---- drawing ------------------------------------------------------------

  /** In pixels of the canvas at 100 %: of all that is there to show. */
  get minHeight() {
    return this.history?.samples.length ? MIN_HEIGHT_WITH_SAMPLES_PX : MIN_HEIGHT_PX;
  }

  /** @param {History | null} history */
  show(history) {
    this.history = history;
    this.schedule();
  }

  /** What is done before the run has anything to show; empty where nothing is. @param {string} words */
  prepare(words) {
    if (words === this.preparing) return;
    this.preparing = words;
    this.schedule();
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const history = this.history;
    const isEmpty = !history || history.status === "new";
    for (const part of [this.head, this.bar, this.chart.svg, this.chart.over, this.legend, this.actions]) toggle(part, "hidden", isEmpty);
    toggle(this.hint, "hidden", !isEmpty);
    write(this.hint, this.preparing || say("panel.hint"));
    this.memory.show(isEmpty ? null : history.memory);
    this.samples.show(isEmpty ? null : history);
    const minHeight = `${this.minHeight - 2 * WIDGET_MARGIN_PX}px`;
    if (this.root.style.minHeight !== minHeight) this.root.style.minHeight = minHeight;
    if (isEmpty) {
      write(this.words, "");
      return;
    }
    this.drawHead(history);
    this.drawLegend(history);
    const actions = /** @type {HTMLButtonElement[]} */ ([...this.actions.children]);
    const further = furtherSteps(history);
    for (const button of actions) {
      const isHere = ACTIONS.some(([action, , , states]) => action === button.dataset.action && states.includes(history.status));
      toggle(button, "hidden", !isHere || (button.dataset.action === "continue" && history.isRefit));
      if (button.dataset.action !== "continue") continue;
      write(button, further.isPlanned ? say("panel.continue.planned", { steps: String(further.steps) }) : say("panel.continue"));
      button.title = say(further.isPlanned ? "panel.continue.planned.title" : "panel.continue.title");
    }
    const verdict = history.status === "finished" ? history.verdict : "";
    write(this.words, verdict || history.note);
    this.words.classList.toggle("verdict", Boolean(verdict));
    if (!this.width || !this.height) return; // drawn when it is seen
    this.view.smoothing = setting("Pistachio.Chart.Smoothing");
    this.chart.draw(history, this.view, this.traceShown(history), this.width, this.height);
    if (this.pointed !== null) this.point(this.pointed);
  }

  /** @param {History} history */
  drawHead(history) {
    write(this.steps, say("panel.steps", { step: String(history.step), steps: String(history.numSteps) }));
    const phase = history.status !== "running" ? "" : this.preparing ? "caching" : history.phase || "training";
    toggle(this.phase, "hidden", !phase);
    if (phase) write(this.phase, phase in PHASES ? say(PHASES[phase]) : phase);
    // Who only looks at a run is not told of it either.
    const silence = this.act ? this.news.silence(history, this.preparing, performance.now() / 1000) : null;
    write(this.status, this.preparing || (silence === null ? statusWords(history) : say("panel.silent", { time: duration(silence) })));
    const reason = this.preparing || silence === null ? "" : say("panel.silent.title");
    if (this.status.title !== reason) this.status.title = reason;
    clearTimeout(this.look);
    if (this.act && history.status === "running" && this.root.isConnected) this.look = window.setTimeout(() => this.schedule(), LOOK_INTERVAL_MS);
    const share = `${((100 * history.step) / Math.max(1, history.numSteps)).toFixed(1)}`;
    if (this.bar.ariaValueNow !== share) {
      this.bar.ariaValueNow = share;
      this.done.style.width = `${share}%`;
    }
    const measured = history.evaluations.find((evaluation) => evaluation.step === history.chosenStep) ?? history.evaluations.at(-1);
    write(this.change, measured && measured.step > 0 ? signed(measured.percent) : "");
    this.change.classList.toggle("worse", Boolean(measured && measured.percent > 0));
    const title = measured ? say("panel.change.title", { step: String(measured.step) }) : "";
    if (this.change.title !== title) this.change.title = title;
  }

  /** @param {History} history */
  drawLegend({ trained, evaluations }) {
    toggle(this.trained, "hidden", trained.length < 2);
    toggle(this.whole, "hidden", this.view.steps === null);
    const last = trained.at(-1), held = last && evaluations.find(({ step }) => step === last.step);
    write(this.trained, last && held ? say("panel.legend.trained.gap", { gap: (held.percent - last.percent).toFixed(1) }) : say("panel.legend.trained"));
  }

  /** @param {number | null} step */
  point(step) {
    this.pointed = step;
    const found = step === null || !this.history ? null : readout(this.history, step, this.detail?.trace);
    this.chart.point(found ? found.step : null);
    toggle(this.readout, "hidden", !found);
    if (!found || !this.chart.frame) return;
    write(this.readout, found.words);
    this.readout.classList.toggle("left", this.chart.frame.x(found.step) > this.width / 2);
  }

  /** The run's training loss, or a zoomed part of it in the server's detail. @param {History} history */
  traceShown(history) {
    const steps = this.view.steps;
    if (!steps || history.training.stride === 1) return history.training;
    const [first, last] = steps;
    const { detail } = this;
    const isThere = detail !== null && detail.run === history.run && detail.first === first && detail.last === last;
    const isWhole = isThere && (detail.revision === history.training.revision || detail.trace.last >= last || history.status !== "running");
    if (!isWhole && performance.now() - this.detailAskedAt > DETAIL_MS) this.askForDetail(history, first, last);
    return isThere ? detail.trace : history.training;
  }

  /** @param {History} history @param {number} first @param {number} last */
  async askForDetail(history, first, last) {
    const { run } = history, { revision } = history.training;
    this.detailAskedAt = performance.now();
    const answer = await getJson(`/pistachio/runs/${encodeURIComponent(run)}/history?first=${first}&last=${last}`).catch(() => null); // the thinned curve stays
    const [wantedFirst, wantedLast] = this.view.steps ?? [];
    if (!answer || this.history?.run !== run || wantedFirst !== first || wantedLast !== last) return;
    this.detail = { run, first, last, revision, trace: traceOf(answer.training) };
    this.schedule();
  }
}

/** Leaves the page alone where nothing changed. @param {Element} part @param {string} text */
function write(part, text) {
  if (part.textContent !== text) part.textContent = text;
}

/** @param {Element} part @param {string} attribute @param {boolean} isThere */
function toggle(part, attribute, isThere) {
  if (part.hasAttribute(attribute) !== isThere) part.toggleAttribute(attribute, isThere);
}

/** @param {History} history */
function statusWords(history) {
  if (history.status === "finished") return history.chosenStep ? say("panel.finished.chosen", { step: String(history.chosenStep) }) : say("panel.finished");
  if (history.status === "interrupted") return say("panel.interrupted");
  if (history.status !== "running") return "";
  const left = history.secondsLeft === null ? "" : say("panel.left", { time: duration(history.secondsLeft) });
  return [left, speed(history.secondsPerStep)].filter(Boolean).join(say("list.comma"));
}
