// @ts-check
/**
 * A run's checkpoints by their samples: one step at a time on a slider, or all of them in a table, the same prompts and seeds at
 * each, and "use this one". All of it by keys: the arrows go through the steps, Escape closes.
 */

import { candidatesOf, firstShown, wordsOf } from "./candidates.mjs";
import { addStylesheet, element } from "./elements.mjs";
import { url } from "./host.mjs";
import { verdict } from "./runs_list.mjs";
import { say } from "./words.mjs";

const SHOWN_PX = 512, SMALL_PX = 256;

addStylesheet("checkpoints.css");

/** @typedef {import("./candidates.mjs").Candidate} Candidate */
/** @typedef {import("./samples.mjs").SampleRow} SampleRow */

/**
 * @param {any} details the answer of GET /pistachio/runs/{name}/history or of GET /pistachio/runs/{name}, with the run's `checkpoints` and `verdict`
 * @param {(step: number) => Promise<boolean | void>} use installs a step; true where that is now recorded as what a person chose
 * @returns {HTMLDialogElement} open; it leaves the page when it is closed
 */
export function openCheckpoints(details, use) {
  const { candidates, rows, chosenStep } = candidatesOf(details);
  let shown = firstShown(candidates, chosenStep);
  /** @type {number | null} */
  let override = details.override_step ?? details.report?.override?.step ?? null;
  const heading = element("h3", { textContent: say("checkpoints.of", { run: details.name }), id: "pistachio-checkpoints-heading" });
  const words = element("output", { className: "words", ariaLive: "polite" });
  const slider = element("input", { type: "range", min: "0", max: String(candidates.length - 1), step: "1", ariaLabel: say("checkpoints.slider") });
  const take = element("button", { className: "use", textContent: say("checkpoints.use") });
  const one = element("button", { textContent: say("checkpoints.one"), title: say("checkpoints.one.title") });
  const all = element("button", { textContent: say("checkpoints.all"), title: say("checkpoints.all.title") });
  const close = element("button", { className: "close", textContent: "✕", title: say("checkpoints.close"), ariaLabel: say("checkpoints.close"), onclick: () => dialog.close() });
  const show = (/** @type {number} */ index) => {
    shown = Math.min(candidates.length - 1, Math.max(0, index));
    draw();
  };
  const sets = candidates.map((candidate) => setOf(candidate, rows));
  const single = element("div", "single", element("div", "steps", slider, marksOf(candidates, show)), element("div", "pictures", ...sets));
  const { table, columns } = tableOf(candidates, rows, show);
  const unseen = chosenStep && !candidates.some(({ step }) => step === chosenStep) ? say("checkpoints.chosen_unseen", { step: String(chosenStep) }) : "";
  const dialog = element(
    "dialog", { className: "pistachio-dialog pistachio-checkpoints", tabIndex: -1 }, // a click beside the parts leaves the keys with it
    element("div", "top", heading, element("div", { className: "views", role: "group", ariaLabel: say("checkpoints.views") }, one, all), close),
    element("div", "choice", words, take), single, table, element("div", { className: "quiet verdict", textContent: [verdict(details), unseen].filter(Boolean).join(" ") }),
  );
  dialog.setAttribute("aria-labelledby", heading.id);
  const draw = () => {
    const candidate = candidates[shown];
    slider.value = String(shown);
    words.value = wordsOf(candidate, override);
    slider.ariaValueText = words.value;
    if (!candidate.isKept && document.activeElement === take) (table.hidden ? slider : table).focus(); // it would be lost
    take.disabled = !candidate.isKept;
    take.title = candidate.isKept ? say(details.status === "finished" ? "checkpoints.use.title" : "checkpoints.use.unrecorded", { step: String(candidate.step) }) : say("checkpoints.use.none");
    sets.forEach((set, i) => set.toggleAttribute("hidden", i !== shown));
    columns.forEach((cells, i) => cells.forEach((cell) => cell.classList.toggle("shown", i === shown)));
    columns.forEach(([head], i) => { /** @type {HTMLElement} */ (head.firstElementChild).ariaPressed = String(i === shown); });
    if (!table.hidden) columns[shown][0].scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const view = (/** @type {boolean} */ isAll) => {
    single.hidden = isAll;
    table.hidden = !isAll;
    one.ariaPressed = String(!isAll);
    all.ariaPressed = String(isAll);
    draw();
  };
  one.onclick = () => view(false);
  all.onclick = () => view(true);
  slider.oninput = () => show(Number(slider.value));
  let isTaking = false;
  take.onclick = async () => {
    if (isTaking) return;
    const { step, mark } = candidates[shown];
    isTaking = true;
    try {
      if (await use(step)) override = mark === "chosen" ? null : step;
    } finally {
      isTaking = false;
    }
    draw();
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the canvas has keys of its own
    const to = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: candidates.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault(); // the slider would move once more
    show(to);
  });
  dialog.addEventListener("click", (event) => {
    const box = dialog.getBoundingClientRect();
    const isInside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === dialog && event.detail > 0 && !isInside) dialog.close();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  view(false);
  dialog.showModal(); // holds the focus within, and gives it back at the end
  slider.focus();
  return dialog;
}

/** The steps under the slider, each at its place; a click goes there. @param {Candidate[]} candidates @param {(index: number) => void} show */
function marksOf(candidates, show) {
  const marks = element("div", { className: "marks", ariaHidden: "true" }); // the slider says it
  candidates.forEach(({ step, mark }, i) => {
    const at = element("span", { className: mark, textContent: step === 0 ? say("checkpoints.base.short") : String(step), onclick: () => show(i) });
    at.style.left = `${candidates.length > 1 ? (100 * i) / (candidates.length - 1) : 50}%`;
    marks.append(at);
  });
  return marks;
}

/** Every step's pictures stay in the page, so that moving the slider shows them at once. @param {Candidate} candidate @param {SampleRow[]} rows */
function setOf(candidate, rows) {
  return element("div", "set", ...rows.map((row, i) => element("figure", row.withTrigger ? "with-trigger" : "", imageOf(candidate, row, i, SHOWN_PX), captionOf(row))));
}

/** @param {Candidate} candidate @param {SampleRow} row @param {number} index of the row @param {number} size in pixels */
function imageOf(candidate, row, index, size) {
  const picture = candidate.pictures[index];
  if (!picture) return element("div", { className: "missing quiet", textContent: say("checkpoints.missing") });
  return element("img", {
    src: url(`/pistachio/thumbnail?file=${encodeURIComponent(picture.thumbnail)}&size=${size}`), loading: "lazy",
    alt: `${say("checkpoints.step.of", { step: String(candidate.step) })}: ${row.prompt}`,
  });
}

/** @param {SampleRow} row */
function captionOf(row) {
  const prompt = row.withTrigger ? row.prompt : say("samples.without", { prompt: row.prompt });
  const seed = row.seed === undefined ? "" : say("checkpoints.seed", { seed: String(row.seed) });
  return element("figcaption", { title: [prompt, seed].filter(Boolean).join(" · ") }, element("span", { className: "prompt", textContent: prompt }), element("span", { className: "seed", textContent: seed }));
}

/** A row a prompt and seed, a column a step. @param {Candidate[]} candidates @param {SampleRow[]} rows @param {(index: number) => void} show */
function tableOf(candidates, rows, show) {
  const heads = candidates.map((candidate, i) => {
    const lines = [candidate.step === 0 ? say("checkpoints.base") : say("checkpoints.step.of", { step: String(candidate.step) }), candidate.change, candidate.mark === "chosen" ? say("checkpoints.chosen") : candidate.mark === "tied" ? say("checkpoints.tied.short") : ""];
    const button = element("button", { title: candidate.words, onclick: () => show(i) }, ...lines.filter(Boolean).map((text, line) => element("span", { className: line ? "quiet" : "step", textContent: text })));
    return element("th", { scope: "col", className: candidate.mark }, button);
  });
  /** @type {HTMLElement[][]} */
  const columns = heads.map((head) => [head]);
  const body = rows.map((row, r) => {
    const cells = candidates.map((candidate, i) => {
      const cell = element("td", { onclick: () => show(i) }, imageOf(candidate, row, r, SMALL_PX));
      columns[i].push(cell);
      return cell;
    });
    const name = element("th", { scope: "row" }, captionOf(row));
    return element("tr", row.withTrigger ? "with-trigger" : "", name, ...cells);
  });
  const table = element("table", {}, element("thead", {}, element("tr", {}, element("td"), ...heads)), element("tbody", {}, ...body));
  return { table: element("div", { className: "all", tabIndex: 0, role: "region", ariaLabel: say("checkpoints.all") }, table), columns };
}
