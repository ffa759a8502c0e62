// @ts-check
/**
 * The caption's text area over its picture. Leaving it saves, Escape leaves the caption as it was.
 */

import { element } from "./elements.mjs";
import { say } from "./words.mjs";

const HEIGHT_PX = 176;

export class ReviewEditor {
  /** @param {import("./review_grid.mjs").ReviewGrid} grid @param {{whenDone: () => void, say: (words: string, isError?: boolean) => void}} owner */
  constructor(grid, owner) {
    this.grid = grid;
    this.owner = owner;
    this.area = element("textarea", { spellcheck: true });
    this.area.addEventListener("blur", () => this.save());
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.save();
        this.owner.whenDone();
      }
    });
    this.root = element("div", "editor", this.area, element("div", "keys", say("review.editor.keys")));
    /** @type {string | null} */
    this.before = null;
    /** @type {((text: string) => void) | null} */
    this.whenSaved = null;
  }

  get isOpen() {
    return this.whenSaved !== null;
  }

  /** @param {number} index @param {import("./review_list.mjs").Picture} picture @param {string} text @param {(text: string) => void} whenSaved */
  open(index, picture, text, whenSaved) {
    this.save();
    this.grid.move(index);
    const place = this.grid.placeOf(index);
    const height = Math.max(HEIGHT_PX, Math.round(place.height * 0.55));
    Object.assign(this.root.style, {
      left: `${place.left}px`, top: `${place.top + place.height - height}px`, width: `${place.width}px`, height: `${height}px`,
    });
    this.area.value = text;
    this.area.setAttribute("aria-label", say("review.editor.label", { name: picture.name }));
    // With the line ends that a text area makes of them. A text that is not on the disk is one to save as it stands.
    this.before = picture.unsaved === undefined ? this.area.value.trim() : null;
    this.whenSaved = whenSaved;
    this.grid.content.append(this.root);
    this.area.focus({ preventScroll: true });
    this.root.scrollIntoView({ block: "nearest" });
  }

  save() {
    const whenSaved = this.close();
    if (whenSaved && this.area.value.trim() !== this.before) whenSaved(this.area.value);
  }

  cancel() {
    this.close();
    this.owner.whenDone();
  }

  close() {
    const { whenSaved } = this;
    if (!whenSaved) return null;
    this.whenSaved = null; // first: taking the area out of the page is a blur
    this.root.remove();
    return whenSaved;
  }
}
