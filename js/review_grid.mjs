// @ts-check
/**
 * Pictures and captions as a grid of which only the rows in view are in the DOM.
 * Knows a picture by its index and asks its owner for everything else. The grid itself keeps the focus:
 * the current cell is named by aria-activedescendant, so scrolling it away loses nothing.
 */

import { element } from "./elements.mjs";
import { icon } from "./review_parts.mjs";
import { GAP_PX, layout, rowsInView } from "./review_list.mjs";
import { say } from "./words.mjs";

const THUMBNAIL_PX = 256;
const IMAGE_WAIT_MS = 100; // rows that fly past ask for no picture
const SHOWN_LETTERS = 300;
let grids = 0;

/** @typedef {import("./review_list.mjs").Picture} Picture */

/**
 * @typedef {object} Owner
 * @property {(picture: Picture, sizePx: number) => string} thumbnail address
 * @property {(picture: Picture) => string[]} topics of the findings about it
 * @property {(index: number) => void} whenMoved
 * @property {(index: number) => void} whenOpened by a double click
 * @property {(action: string, index: number) => void} whenAsked by a button on the picture
 */

class Tile {
  /** @param {string} id */
  constructor(id) {
    this.image = document.createElement("img");
    this.image.alt = ""; // the cell has the words
    this.image.decoding = "async";
    this.image.draggable = false;
    this.image.addEventListener("error", () => this.thumb.classList.add("unseen"));
    this.image.addEventListener("load", () => this.thumb.classList.remove("unseen"));
    this.thumb = element("div", "thumb", this.image);
    this.thumb.dataset.unseen = say("review.no_preview"); // shown by the style sheet
    this.badges = element("div", "badges");
    this.caption = element("div", "caption");
    this.name = element("div", "name");
    // In the order in which they are read out, as words of their own; the style sheet puts the name last.
    this.root = element("div", "tile", this.thumb, this.name, " ", this.badges, this.caption);
    this.root.setAttribute("role", "gridcell");
    this.root.id = id;
    /** @type {Picture | null} */
    this.picture = null;
    this.topics = "";
    this.wanted = "";
  }

  /** @param {Picture | null} picture @param {number} index @param {string[]} topics @param {string} address of the thumbnail */
  show(picture, index, topics, address) {
    this.root.hidden = !picture;
    this.root.dataset.index = String(index);
    const topicWords = topics.join(", ");
    if (!picture || (picture === this.picture && topicWords === this.topics)) {
      this.picture = picture;
      return;
    }
    this.picture = picture;
    this.topics = topicWords;
    if (address !== this.wanted) {
      this.wanted = address;
      this.image.removeAttribute("src"); // ends a request that nobody waits for any more
      this.thumb.classList.remove("unseen");
    }
    const text = picture.unsaved ?? picture.caption ?? "";
    this.caption.textContent = text ? text.slice(0, SHOWN_LETTERS) : picture.problem ?? say("review.no_caption");
    this.caption.classList.toggle("empty", !text);
    this.name.textContent = picture.name;
    this.root.classList.toggle("excluded", Boolean(picture.is_excluded));
    const badges = badgesOf(picture, topics);
    this.badges.replaceChildren(...badgeElements(badges).flatMap((badge) => [badge, " "]));
    const words = badges.map(([, word]) => word), reasons = badges.map(([, , title]) => title).filter(Boolean);
    this.root.setAttribute("aria-label", [picture.name, ...words, this.caption.textContent, ...reasons].join(". "));
  }

  /** An attribute that is set again is a change to the browser: only what differs. @param {boolean} isCurrent */
  mark(isCurrent) {
    const words = String(isCurrent);
    if (this.root.getAttribute("aria-selected") === words) return;
    this.root.setAttribute("aria-selected", words);
    this.root.classList.toggle("current", isCurrent);
  }

  loadImage() {
    if (this.wanted && this.image.getAttribute("src") !== this.wanted) this.image.src = this.wanted;
  }
}

/** @param {ReturnType<typeof badgesOf>} badges */
export const badgeElements = (badges) => badges.map(([kind, words, title]) => {
  const badge = element("span", `badge ${kind}`, words);
  badge.title = title;
  return badge;
});

/** @param {Picture} picture @param {string[]} topics @returns {[kind: string, words: string, title: string][]} */
export function badgesOf(picture, topics) {
  /** @type {[string, string, string][]} */
  const badges = [];
  if (picture.unsaved !== undefined) badges.push(["unsaved", say("review.badge.unsaved"), ""]);
  if (picture.is_excluded) badges.push(["excluded", say("review.badge.excluded"), ""]);
  if (picture.is_held_out) badges.push(["held-out", say("review.badge.held_out"), ""]);
  if (picture.reason) badges.push(["look", say("review.badge.look"), picture.reason]);
  if (picture.problem) badges.push(["look", say("review.badge.unreadable"), picture.problem]);
  if (picture.is_edited) badges.push(["edited", say("review.badge.edited"), ""]);
  for (const topic of topics) badges.push(["finding", topic, ""]);
  return badges;
}

export class ReviewGrid {
  /** @param {Owner} owner @param {number} leastTilePx */
  constructor(owner, leastTilePx) {
    this.owner = owner;
    this.leastTilePx = leastTilePx;
    this.id = `pistachio-review-${(grids += 1)}`;
    this.content = element("div", "content");
    this.content.setAttribute("role", "presentation");
    this.root = element("div", "grid", this.content);
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "grid");
    this.root.setAttribute("aria-label", say("review.grid"));
    // ComfyUI undoes a step of the graph at Ctrl+Z unless what has the focus is of this type.
    Object.assign(this.root, { type: "textarea" });
    /** @type {Picture[]} */
    this.pictures = [];
    this.current = 0;
    this.layout = layout(400, leastTilePx);
    /** @type {Map<number, {root: HTMLElement, tiles: Tile[]}>} row number -> its elements */
    this.rows = new Map();
    /** @type {{root: HTMLElement, tiles: Tile[]}[]} */
    this.spare = [];
    this.frame = 0;
    this.imageTimer = 0;
    this.actions = this.makeActions();
    this.root.addEventListener("scroll", () => this.schedule(), { passive: true });
    this.root.addEventListener("pointerdown", (event) => this.pointed(event));
    this.root.addEventListener("dblclick", (event) => {
      const index = this.indexAt(event);
      if (index !== null && !(/** @type {Element} */ (event.target).closest("button, textarea"))) this.owner.whenOpened(index);
    });
    this.root.addEventListener("pointerover", (event) => this.hovered(event));
    this.root.addEventListener("pointerleave", () => this.actions.remove());
    new ResizeObserver(() => this.resized()).observe(this.root);
  }

  makeActions() {
    const actions = element("div", "actions");
    for (const [action, words, shape] of /** @type {[string, string, string][]} */ ([
      ["accept", say("review.do.accept"), "accept"], ["edit", say("review.do.edit"), "edit"],
      ["held_out", say("review.do.hold"), "hold"], ["excluded", say("review.do.exclude"), "exclude"],
    ])) {
      const button = element("button", { type: "button", className: action }, icon(shape));
      button.tabIndex = -1; // the keys do the same
      button.title = words;
      button.setAttribute("aria-label", words);
      button.addEventListener("click", () => {
        const index = Number(/** @type {HTMLElement} */ (actions.parentElement).dataset.index);
        this.move(index, { scroll: false });
        this.owner.whenAsked(action, index);
      });
      actions.append(button);
    }
    return actions;
  }

  // ---- what is shown ---------------------------------------------------------------

  /** @param {Picture[]} pictures @param {number} current */
  show(pictures, current) {
    this.pictures = pictures;
    this.current = Math.max(0, Math.min(current, pictures.length - 1));
    this.root.setAttribute("aria-rowcount", String(this.numRows));
    this.root.setAttribute("aria-colcount", String(this.layout.columns));
    this.content.style.height = `${Math.max(0, this.numRows * this.layout.rowHeightPx - GAP_PX)}px`;
    this.draw(true);
  }

  get numRows() {
    return Math.ceil(this.pictures.length / this.layout.columns);
  }

  get rowsOnPage() {
    return Math.max(1, Math.floor(this.root.clientHeight / this.layout.rowHeightPx));
  }

  resized() {
    const width = this.content.clientWidth;
    if (!width) return; // out of sight
    const next = layout(width, this.leastTilePx);
    const isSame = next.columns === this.layout.columns && next.tileWidthPx === this.layout.tileWidthPx;
    const first = Math.floor(this.root.scrollTop / this.layout.rowHeightPx) * this.layout.columns;
    this.layout = next;
    if (!isSame) {
      for (const row of this.rows.values()) row.root.remove();
      this.rows.clear();
      this.spare = [];
      this.root.style.setProperty("--columns", String(next.columns));
      this.root.style.setProperty("--tile-height", `${next.tileHeightPx}px`);
      this.show(this.pictures, this.current);
      this.root.scrollTop = Math.floor(first / next.columns) * next.rowHeightPx; // what was on top stays there
    }
    this.draw();
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  /** @param {boolean} [anew] the pictures of rows that stay may be others */
  draw(anew = false) {
    const [first, end] = rowsInView(this.root.scrollTop, this.root.clientHeight, this.layout.rowHeightPx, this.numRows);
    for (const [number, row] of this.rows) {
      if (number < first || number >= end) {
        this.rows.delete(number);
        this.spare.push(row);
      }
    }
    for (let number = first; number < end; number += 1) {
      let row = this.rows.get(number);
      if (row && !anew) continue;
      if (!row) {
        row = this.spare.pop() ?? this.makeRow();
        this.rows.set(number, row);
        row.root.style.transform = `translateY(${number * this.layout.rowHeightPx}px)`;
        row.root.setAttribute("aria-rowindex", String(number + 1));
        row.root.hidden = false;
      }
      row.tiles.forEach((tile, column) => {
        const index = number * this.layout.columns + column;
        const picture = this.pictures[index] ?? null;
        tile.show(picture, index, picture ? this.owner.topics(picture) : [], picture ? this.owner.thumbnail(picture, THUMBNAIL_PX) : "");
      });
    }
    for (const row of this.spare) if (!row.root.hidden) row.root.hidden = true;
    this.drawCurrent();
    this.imageTimer ||= window.setTimeout(() => {
      this.imageTimer = 0;
      for (const row of this.rows.values()) for (const tile of row.tiles) if (tile.picture) tile.loadImage();
    }, IMAGE_WAIT_MS);
  }

  makeRow() {
    const tiles = Array.from({ length: this.layout.columns }, (_, column) => {
      const tile = new Tile(`${this.id}-${this.rows.size + this.spare.length}-${column}-${Math.random().toString(36).slice(2, 7)}`);
      tile.root.setAttribute("aria-colindex", String(column + 1));
      return tile;
    });
    const root = element("div", "row", ...tiles.map((tile) => tile.root));
    root.setAttribute("role", "row");
    this.content.append(root);
    return { root, tiles };
  }

  drawCurrent() {
    let id = "";
    for (const row of this.rows.values()) {
      for (const tile of row.tiles) {
        const isCurrent = tile.picture !== null && Number(tile.root.dataset.index) === this.current;
        tile.mark(isCurrent);
        if (isCurrent) id = tile.root.id;
      }
    }
    if (id === (this.root.getAttribute("aria-activedescendant") ?? "")) return;
    if (id) this.root.setAttribute("aria-activedescendant", id);
    else this.root.removeAttribute("aria-activedescendant");
  }

  // ---- moving ----------------------------------------------------------------------

  /** @param {number} index @param {{scroll?: boolean}} [how] */
  move(index, { scroll = true } = {}) {
    this.current = index;
    if (scroll) {
      const top = Math.floor(index / this.layout.columns) * this.layout.rowHeightPx;
      const bottom = top + this.layout.tileHeightPx - this.root.clientHeight;
      if (this.root.scrollTop > top) this.root.scrollTop = top;
      else if (this.root.scrollTop < bottom) this.root.scrollTop = Math.min(top, bottom + GAP_PX);
    }
    this.draw();
    this.owner.whenMoved(index);
  }

  /** @param {Event} event @returns {number | null} of the picture under it */
  indexAt(event) {
    const tile = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest(".tile"));
    return tile ? Number(tile.dataset.index) : null;
  }

  /** @param {PointerEvent} event */
  pointed(event) {
    const index = this.indexAt(event);
    if (index !== null && !(/** @type {Element} */ (event.target).closest("button"))) this.move(index, { scroll: false });
  }

  /** The buttons are one set, on the picture under the pointer. @param {PointerEvent} event */
  hovered(event) {
    const tile = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest(".tile"));
    if (!tile || tile === this.actions.parentElement) return;
    const picture = this.pictures[Number(tile.dataset.index)];
    /** @type {HTMLElement} */ (this.actions.firstElementChild).hidden = !picture?.reason;
    tile.append(this.actions);
  }

  /** Where the editor goes: over the picture's words, within the grid. @param {number} index */
  placeOf(index) {
    const { columns, tileWidthPx, tileHeightPx, rowHeightPx } = this.layout;
    const width = Math.min(this.content.clientWidth, Math.max(tileWidthPx, 340));
    const left = Math.min((index % columns) * (tileWidthPx + GAP_PX), this.content.clientWidth - width);
    return { left, top: Math.floor(index / columns) * rowHeightPx, width, height: tileHeightPx };
  }
}
