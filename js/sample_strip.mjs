// @ts-check
/**
 * A run's samples below its chart: a row for each prompt and seed, a column for each step. A picture opens the comparison
 * of two steps. Pictures are fetched when they come into view.
 */

import { address, openComparison } from "./compare_steps.mjs";
import { addStylesheet, element } from "./elements.mjs";
import { rowsOf } from "./samples.mjs";
import { say } from "./words.mjs";

const THUMBNAIL_PX = 160;

addStylesheet("samples.css");

/**
 * @typedef {import("./history.mjs").History} History
 * @typedef {import("./history.mjs").Picture} Picture
 */

export class SampleStrip {
  constructor() {
    this.table = element("table", { ariaLabel: say("samples.label") });
    this.root = element("div", { className: "samples", hidden: true }, this.table);
    this.shown = "";
    /** @type {History | null} */
    this.history = null;
    // Scrolling the pictures must not zoom the canvas; a wheel that only goes up and down scrolls the steps.
    this.root.addEventListener("wheel", (event) => {
      const { scrollWidth, clientWidth, scrollHeight, clientHeight } = this.root;
      if (scrollWidth <= clientWidth && scrollHeight <= clientHeight) return;
      event.stopPropagation();
      if (scrollHeight > clientHeight || event.deltaX || event.shiftKey) return;
      this.root.scrollLeft += event.deltaY;
      event.preventDefault();
    }, { passive: false });
    this.root.addEventListener("keydown", (event) => this.move(event));
    // The latest step stays in view, unless somebody looks at another; pictures get their width as they come.
    this.followsEnd = true;
    this.root.addEventListener("scroll", () => {
      this.followsEnd = this.root.scrollLeft + this.root.clientWidth >= this.root.scrollWidth - 8;
    });
    this.root.addEventListener("load", () => this.follow(), { capture: true });
  }

  /** Anew only when there are other pictures. @param {History | null} history */
  show(history) {
    this.history = history;
    const samples = history?.samples ?? [];
    const shown = history && samples.length ? `${history.run} ${history.chosenStep} ${samples.map(({ step, pictures }) => `${step}:${pictures.length}`).join()}` : "";
    if (shown === this.shown) return;
    this.shown = shown;
    this.root.toggleAttribute("hidden", !shown);
    if (!history || !shown) {
      this.table.replaceChildren();
      return;
    }
    const { steps, rows } = rowsOf(samples);
    const head = element("tr", "", element("td", ""), ...steps.map((step) => {
      const isChosen = step === history.chosenStep;
      return element("th", { scope: "col", className: isChosen ? "chosen" : "", textContent: step === 0 ? say("samples.base") : String(step), title: isChosen ? say("samples.chosen") : "" });
    }));
    const lines = rows.map((row, index) => {
      const name = element("th", { scope: "row", className: row.withTrigger ? "with-trigger" : "", title: row.prompt }, element("span", { textContent: row.prompt }));
      const cells = steps.map((step) => {
        const picture = row.pictures.get(step);
        return element("td", "", ...(picture ? [this.picture(picture, step, index)] : []));
      });
      return element("tr", "", name, ...cells);
    });
    const focused = /** @type {HTMLElement | null} */ (this.table.contains(document.activeElement) ? document.activeElement : null);
    this.table.replaceChildren(element("thead", "", head), element("tbody", "", ...lines));
    const buttons = [...this.table.querySelectorAll("button")];
    const again = buttons.find(({ dataset }) => dataset.step === focused?.dataset.step && dataset.row === focused?.dataset.row) ?? buttons.at(-1);
    if (again) again.tabIndex = 0; // one of them is on the way of the Tab key
    if (focused) again?.focus();
    this.follow();
  }

  follow() {
    if (this.followsEnd) this.root.scrollLeft = this.root.scrollWidth;
  }

  /** @param {Picture} picture @param {number} step @param {number} row */
  picture(picture, step, row) {
    const image = element("img", { loading: "lazy", src: address(picture, THUMBNAIL_PX), alt: "", draggable: false });
    const words = say(picture.with_trigger ? "samples.picture" : "samples.picture.without", { step: String(step), prompt: picture.prompt });
    const button = element("button", { title: words, ariaLabel: words, tabIndex: -1, className: picture.with_trigger ? "with-trigger" : "" }, image);
    Object.assign(button.dataset, { step: String(step), row: String(row) });
    button.onclick = () => {
      if (this.history) openComparison(this.history, row, step).addEventListener("close", () => button.focus());
    };
    return button;
  }

  /** Arrow keys go from picture to picture. @param {KeyboardEvent} event */
  move(event) {
    const from = /** @type {HTMLElement} */ (event.target);
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!(right || down) || from.tagName !== "BUTTON") return;
    event.preventDefault();
    event.stopPropagation(); // the canvas has keys of its own
    const rows = [...this.table.tBodies[0].rows];
    const cell = /** @type {HTMLTableCellElement} */ (from.closest("td")), row = /** @type {HTMLTableRowElement} */ (cell.parentElement);
    let x = cell.cellIndex + right, y = rows.indexOf(row) + down;
    for (; rows[y]?.cells[x]; x += right, y += down) {
      const button = rows[y].cells[x].querySelector("button");
      if (!button) continue;
      from.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
      return;
    }
  }
}
