// @ts-check
/**
 * Two steps of a run's samples against each other: one over the other with a slider between them, or side by side. The same
 * prompt and seed on both. Every part of it is reached by the keyboard.
 */

import { element } from "./elements.mjs";
import { signed } from "./history.mjs";
import { url } from "./host.mjs";
import { partnerOf, rowsOf } from "./samples.mjs";
import { say } from "./words.mjs";

const SHOWN_PX = 1024;

/** @typedef {import("./history.mjs").History} History */

/** @param {import("./history.mjs").Picture} picture @param {number} size in pixels */
export function address(picture, size) {
  return url(`/pistachio/thumbnail?file=${encodeURIComponent(picture.thumbnail)}&size=${size}`);
}

/** @param {History} history @param {number} index of the row @param {number} step @returns {HTMLDialogElement} open; it leaves the page when it is closed */
export function openComparison(history, index, step) {
  const { rows } = rowsOf(history.samples);
  let row = index;
  let [left, right] = [partnerOf(rows[row], step), step];
  if (left > right) [left, right] = [right, left];
  const picker = (/** @type {string} */ words, /** @type {(step: number) => void} */ change) => {
    const made = element("select", { ariaLabel: words });
    made.onchange = () => {
      change(Number(made.value));
      draw();
    };
    return made;
  };
  const leftPick = picker(say("samples.left"), (chosen) => { left = chosen; });
  const rightPick = picker(say("samples.right"), (chosen) => { right = chosen; });
  const leftImage = element("img", { className: "left" }), rightImage = element("img", { className: "right" });
  const stage = element("div", "stage", rightImage, leftImage, element("div", "edge"));
  const slider = element("input", { type: "range", min: "0", max: "100", step: "1", value: "50", ariaLabel: say("samples.slider") });
  const beside = element("button", { textContent: say("samples.beside"), title: say("samples.beside.title"), ariaPressed: "false" });
  const before = element("button", { textContent: "‹", title: say("samples.previous"), ariaLabel: say("samples.previous") });
  const after = element("button", { textContent: "›", title: say("samples.next"), ariaLabel: say("samples.next") });
  const prompt = element("div", "prompt");
  const close = element("button", { className: "close", textContent: "✕", title: say("samples.close"), ariaLabel: say("samples.close"), onclick: () => dialog.close() });
  const dialog = element(
    "dialog", { className: "pistachio-dialog pistachio-compare-steps", ariaLabel: say("samples.dialog", { run: history.run }) },
    element("div", "top", before, after, prompt, beside, close), element("div", "picks", leftPick, rightPick), stage, slider,
  );
  const draw = () => {
    const { pictures, prompt: words, withTrigger } = rows[row];
    const steps = [...pictures.keys()].sort((a, b) => a - b);
    if (!pictures.has(left)) left = steps[0];
    if (!pictures.has(right)) right = steps[steps.length - 1];
    for (const [pick, image, chosen] of /** @type {[HTMLSelectElement, HTMLImageElement, number][]} */ ([[leftPick, leftImage, left], [rightPick, rightImage, right]])) {
      pick.replaceChildren(...steps.map((each) => element("option", { value: String(each), textContent: stepWords(history, each), selected: each === chosen })));
      const picture = pictures.get(chosen);
      const source = picture ? address(picture, SHOWN_PX) : "";
      if (image.getAttribute("src") !== source) image.setAttribute("src", source);
      image.alt = `${stepWords(history, chosen)}: ${words}`;
    }
    prompt.textContent = withTrigger ? words : say("samples.without", { prompt: words });
    prompt.title = words;
    before.disabled = row === 0;
    after.disabled = row === rows.length - 1;
    stage.style.setProperty("--at", `${slider.value}%`);
    slider.ariaValueText = say("samples.slider.value", { percent: slider.value, left: String(left), right: String(right) });
  };
  const turn = (/** @type {number} */ move) => {
    row = Math.min(rows.length - 1, Math.max(0, row + move));
    draw();
  };
  before.onclick = () => turn(-1);
  after.onclick = () => turn(1);
  slider.oninput = draw;
  beside.onclick = () => {
    const isBeside = dialog.classList.toggle("beside");
    beside.ariaPressed = String(isBeside);
    slider.disabled = isBeside;
  };
  stage.addEventListener("pointerdown", (event) => {
    if (dialog.classList.contains("beside")) return;
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  const drag = (/** @type {PointerEvent} */ event) => {
    const box = leftImage.getBoundingClientRect();
    slider.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    draw();
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the canvas has keys of its own
    if (event.key === "PageUp" || event.key === "PageDown") {
      turn(event.key === "PageUp" ? -1 : 1);
      event.preventDefault();
    }
  });
  dialog.addEventListener("click", (event) => {
    const box = dialog.getBoundingClientRect();
    const isInside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === dialog && !isInside) dialog.close();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  draw();
  dialog.showModal();
  slider.focus();
  return dialog;
}

/** @param {History} history @param {number} step */
export function stepWords(history, step) {
  if (step === 0) return say("samples.step.base");
  const measured = history.evaluations.find((evaluation) => evaluation.step === step);
  const name = say(step === history.chosenStep ? "samples.step.chosen" : "samples.step", { step: String(step) });
  return measured ? `${name} · ${signed(measured.percent)}` : name;
}
