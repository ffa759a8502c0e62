// @ts-check
/**
 * A run's checkpoints by their samples: a slider over the steps, the same prompts and seeds at each, and "use this one".
 */

import { addStylesheet, element } from "./elements.mjs";
import { url } from "./host.mjs";
import { signed } from "./history.mjs";

const SHOWN_PX = 512;

addStylesheet("checkpoints.css");

/**
 * @typedef {object} Candidate one step with samples
 * @property {number} step
 * @property {{thumbnail: string, prompt: string, with_trigger: boolean}[]} pictures
 * @property {boolean} isKept as a checkpoint, so that it can be installed
 * @property {string} words
 */

/** @param {any} details the answer of GET /pistachio/runs/{name} @returns {Candidate[]} */
export function candidatesOf(details) {
  const measured = new Map((details.metrics ?? []).filter((/** @type {any} */ row) => row.kind === "eval").map((/** @type {any} */ row) => [row.step, row]));
  const [first, last] = details.report?.tied_range ?? [null, null];
  return (details.samples ?? []).map((/** @type {any} */ entry) => {
    const row = measured.get(entry.step);
    const words = [
      `Step ${entry.step}`,
      row && entry.step > 0 && Number.isFinite(row.loss_delta_pct) ? `held-out loss ${signed(row.loss_delta_pct)}` : "",
      entry.step === 0 ? "the base model" : entry.step === details.chosen_step ? "chosen" : first !== null && entry.step >= first && entry.step <= last ? "as good as the chosen one" : "",
    ];
    return { step: entry.step, pictures: entry.pictures, isKept: (details.checkpoints ?? []).includes(entry.step), words: words.filter(Boolean).join(" · ") };
  });
}

/**
 * @param {any} details @param {(step: number) => Promise<void>} use installs a step
 * @returns {HTMLDialogElement} open; it leaves the page when it is closed
 */
export function openCheckpoints(details, use) {
  const candidates = candidatesOf(details);
  let shown = Math.max(0, candidates.findIndex(({ step }) => step === details.chosen_step));
  const words = element("output", "words");
  const pictures = element("div", "pictures");
  const slider = element("input", { type: "range", min: "0", max: String(candidates.length - 1), step: "1", ariaLabel: "Step" });
  const steps = element("datalist", {}, ...candidates.map((_, i) => element("option", { value: String(i) })));
  steps.id = "pistachio-checkpoint-steps";
  slider.setAttribute("list", steps.id);
  const button = element("button", { textContent: "Use this one" });
  const close = element("button", { className: "close", textContent: "✕", title: "Close", ariaLabel: "Close", onclick: () => dialog.close() });
  const verdict = element("div", { className: "quiet", textContent: details.verdict ?? "" });
  const dialog = element(
    "dialog", { className: "pistachio-checkpoints", ariaLabel: `Checkpoints of ${details.name}` },
    element("div", "top", element("h3", { textContent: details.name }), words, button, close), element("div", "steps", slider, steps), pictures, verdict,
  );
  // Every step's pictures stay in the page, so that moving the slider shows them at once.
  const sets = candidates.map((candidate) => element("div", "set", ...candidate.pictures.map(picture)));
  pictures.append(...sets);
  const draw = () => {
    const candidate = candidates[shown];
    slider.value = String(shown);
    slider.ariaValueText = candidate.words;
    words.value = candidate.words;
    button.disabled = !candidate.isKept;
    button.title = candidate.isKept ? `Puts step ${candidate.step} into models/loras; the report records it as your choice` : "No checkpoint was kept at this step";
    sets.forEach((set, i) => set.toggleAttribute("hidden", i !== shown));
  };
  const show = (/** @type {number} */ index) => {
    shown = Math.min(candidates.length - 1, Math.max(0, index));
    draw();
  };
  slider.oninput = () => show(Number(slider.value));
  button.onclick = async () => {
    button.disabled = true;
    await use(candidates[shown].step);
    draw();
    slider.focus(); // a button that was switched off has lost it
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the canvas has keys of its own
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault(); // the slider would move once more
    show(shown + move);
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  draw();
  dialog.showModal();
  slider.focus();
  return dialog;
}

/** @param {{thumbnail: string, prompt: string, with_trigger: boolean}} sample */
function picture(sample) {
  const image = element("img", {
    src: url(`/pistachio/thumbnail?file=${encodeURIComponent(sample.thumbnail)}&size=${SHOWN_PX}`), alt: sample.prompt, loading: "lazy",
  });
  const label = sample.with_trigger ? "" : "without the trigger word: ";
  return element("figure", sample.with_trigger ? "with-trigger" : "", image, element("figcaption", { textContent: label + sample.prompt, title: sample.prompt }));
}
