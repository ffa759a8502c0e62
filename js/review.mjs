// @ts-check
/**
 * The review of a folder as one DOM element: search, filter, grid, editor, keys, and what to do where a file changed meanwhile.
 * The same element stands on a node and fills the dialog.
 */

import { addStylesheet, element } from "./elements.mjs";
import { ReviewEditor } from "./review_editor.mjs";
import { badgeElements, badgesOf, ReviewGrid } from "./review_grid.mjs";
import { chosen, countWords, filterChoices, KEYS, moved } from "./review_list.mjs";
import { button, icon } from "./review_parts.mjs";
import { storeOf } from "./review_folders.mjs";
import { sentence } from "./review_store.mjs";
import { say } from "./words.mjs";

const SEARCH_WAIT_MS = 120;
const LARGE_PX = 1024;

addStylesheet("review.css");

/**
 * @typedef {import("./review_list.mjs").Picture} Picture
 * @typedef {import("./review_store.mjs").Scope} Scope
 */

export class ReviewView {
  /** @param {{leastTilePx: number, hint: string, settings?: () => object, onLarge?: () => void}} options */
  constructor({ leastTilePx, hint, settings = () => ({}), onLarge }) {
    this.settings = settings;
    /** @type {import("./review_store.mjs").ReviewStore | null} */
    this.store = null;
    /** @type {Picture[]} */
    this.shown = [];
    /** @type {Map<string, string[]>} name -> topics */
    this.topics = new Map();
    this.filter = "all";
    this.query = "";
    this.current = ""; // name of the current picture
    this.grid = new ReviewGrid({
      thumbnail: (picture, sizePx) => this.store?.thumbnail(picture, sizePx) ?? "",
      topics: (picture) => this.topics.get(picture.name) ?? [],
      whenMoved: (index) => this.whenMoved(index),
      whenOpened: (index) => this.edit(index),
      whenAsked: (action, index) => (action === "edit" ? this.edit(index) : this.mark(action, index)),
    }, leastTilePx);
    this.editor = new ReviewEditor(this.grid, {
      whenDone: () => this.grid.root.focus(),
      say: (words, isError) => this.say(words, isError),
    });
    this.search = this.makeSearch();
    this.select = this.makeFilter();
    this.check = button(say("review.check.title"), () => this.store?.check(this.settings(), true), say("review.check"));
    this.undo = button(say("review.undo.none"), () => this.step("undo"), icon("undo"));
    this.redo = button(say("review.redo.none"), () => this.step("redo"), icon("redo"));
    const keys = button(say("review.keys.title"), () => this.showHelp(this.help.hidden === true), icon("keys"));
    this.toolbar = element("div", "toolbar", this.search, this.select, this.check, this.undo, this.redo, keys);
    if (onLarge) this.toolbar.append(button(say("review.large"), onLarge, icon("large")));
    this.toolbar.setAttribute("role", "toolbar");
    this.toolbar.setAttribute("aria-label", say("review.title"));
    this.hint = element("div", "hint", hint);
    this.emptyWords = hint;
    this.large = element("div", "large");
    this.large.hidden = true;
    this.large.addEventListener("click", () => this.showLarge(false));
    this.help = element("div", "help", element("h3", "", say("review.keys.heading")), keyTable(), element("p", "", say("review.keys.note")));
    this.help.hidden = true;
    this.help.tabIndex = 0; // in a small node it scrolls, by keys too
    this.conflict = element("div", "conflict");
    this.conflict.setAttribute("role", "alertdialog");
    this.conflict.setAttribute("aria-label", say("review.conflict.label"));
    this.conflict.hidden = true;
    this.status = element("span", "status");
    this.status.setAttribute("role", "status");
    this.again = button(say("review.again.title"), () => this.store?.saveAgain(), say("review.again"));
    this.again.hidden = true;
    this.counts = element("span", "counts");
    this.root = element(
      // The second class is ComfyUI's: in its newer renderer the widget fills its node.
      "div", "pistachio-review widget-expands", this.toolbar, element("div", "middle", this.grid.root, this.hint, this.large, this.help, this.conflict),
      element("div", "foot", this.status, this.again, this.counts),
    );
    this.root.dataset.captureWheel = "true"; // in ComfyUI's newer renderer scrolling the grid must not zoom the canvas
    this.root.addEventListener("wheel", (event) => event.stopPropagation());
    this.root.addEventListener("keydown", (event) => this.pressed(event));
    for (const type of ["keyup", "keypress", "copy", "paste", "cut"]) this.root.addEventListener(type, (event) => event.stopPropagation());
    this.whenChanged = (/** @type {Event} */ event) => this.changed(/** @type {CustomEvent} */ (event).detail);
    this.draw();
  }

  makeSearch() {
    const search = element("input", { className: "search", type: "search", placeholder: say("review.search"), ariaLabel: say("review.search") });
    let wait = 0;
    search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = window.setTimeout(() => {
        this.query = search.value;
        this.draw();
      }, SEARCH_WAIT_MS);
    });
    return search;
  }

  makeFilter() {
    const select = element("select", { className: "filter", ariaLabel: say("review.filter.label") });
    select.addEventListener("change", () => {
      this.filter = select.value;
      this.draw();
      this.grid.root.scrollTop = 0;
      this.grid.root.focus();
    });
    return select;
  }

  // ---- what is shown ---------------------------------------------------------------

  /** @param {Scope | null} scope */
  open(scope) {
    const store = scope?.folder.trim() ? storeOf(scope) : null;
    if (store === this.store) return;
    this.editor.save();
    this.store?.removeEventListener("change", this.whenChanged);
    this.store = store;
    this.current = "";
    store?.addEventListener("change", this.whenChanged);
    this.say("");
    this.draw();
  }

  close() {
    this.editor.save();
    this.store?.removeEventListener("change", this.whenChanged);
    this.store = null;
  }

  reload() {
    if (this.store && !this.store.checking) this.store.load();
  }

  /** @param {{words: string, isError: boolean}} told */
  changed({ words, isError }) {
    if (words) this.say(words, isError);
    this.draw();
  }

  /** @param {string} words */
  say(words, isError = false) {
    this.status.textContent = words;
    this.status.title = words;
    this.status.classList.toggle("error", isError);
  }

  draw() {
    const store = this.store;
    const pictures = store?.pictures ?? [];
    const findings = store?.findings ?? [];
    this.topics = new Map();
    for (const finding of findings) {
      if (finding.pictures.length * 2 > pictures.length) continue; // what most pictures have marks none of them; it is in the filter
      for (const name of finding.pictures) this.topics.set(name, [...(this.topics.get(name) ?? []), finding.topic]);
    }
    const choices = filterChoices(pictures, findings);
    if (!choices.some(({ key }) => key === this.filter)) this.filter = "all"; // its last picture was dealt with
    drawChoices(this.select, choices, this.filter);
    const at = this.shown.findIndex(({ name }) => name === this.current);
    this.shown = chosen(pictures, { filter: this.filter, query: this.query, findings });
    const now = this.shown.findIndex(({ name }) => name === this.current);
    this.grid.show(this.shown, now >= 0 ? now : Math.max(0, at)); // the next one takes the place of one that left the filter
    this.current = this.shown[this.grid.current]?.name ?? "";
    this.hint.hidden = this.shown.length > 0;
    this.hint.textContent = !store ? this.emptyWords : store.problem || (!store.isLoaded ? say("review.reading") : say("review.nothing"));
    const counted = store ? countWords(pictures) : "";
    this.counts.textContent = this.shown.length === pictures.length ? counted : say("review.shown", { shown: this.shown.length, pictures: counted });
    this.check.textContent = store?.checking || say("review.check");
    this.check.disabled = !store || Boolean(store.checking);
    setStep(this.undo, store?.undoWords ? say("review.undo", { change: store.undoWords }) : "", say("review.undo.none"));
    setStep(this.redo, store?.redoWords ? say("review.redo", { change: store.redoWords }) : "", say("review.redo.none"));
    const conflicts = store?.conflicts ?? [];
    this.again.hidden = !store?.hasFailed;
    this.drawConflict(conflicts[0]);
    if (!this.large.hidden) this.showLarge(true);
  }

  /** @param {number} index */
  whenMoved(index) {
    this.current = this.shown[index]?.name ?? "";
    if (!this.large.hidden) this.showLarge(true);
  }

  /** @param {boolean} isShown */
  showLarge(isShown) {
    const picture = this.shown[this.grid.current];
    this.large.hidden = !isShown || !picture || !this.store;
    if (this.large.hidden || !picture || !this.store) return;
    const image = document.createElement("img");
    image.src = this.store.thumbnail(picture, LARGE_PX);
    image.alt = picture.name;
    const badges = badgeElements(badgesOf(picture, this.topics.get(picture.name) ?? []));
    const words = element("p", "", picture.unsaved ?? picture.caption ?? say("review.no_caption"));
    this.large.replaceChildren(image, element("div", "words", element("strong", "", picture.name), ...badges, words));
  }

  /** @param {boolean} isShown */
  showHelp(isShown) {
    this.help.hidden = !isShown;
    this.grid.root.focus();
  }

  /** @param {import("./review_store.mjs").Conflict | undefined} conflict */
  drawConflict(conflict) {
    const shown = conflict ? JSON.stringify(conflict) : "";
    if (this.conflict.dataset.shown === shown) return;
    this.conflict.dataset.shown = shown;
    this.conflict.hidden = !conflict;
    if (!conflict || !this.store) return;
    const store = this.store;
    const mine = element("textarea", { value: conflict.mine, ariaLabel: say("review.conflict.mine.label") });
    const theirs = element("div", "theirs", conflict.theirs ?? say("review.conflict.removed"));
    const settle = (/** @type {string | null} */ text) => {
      store.settle(conflict, text);
      this.grid.root.focus();
    };
    const keepMine = button(say("review.conflict.keep_mine.title"), () => settle(mine.value), say("review.conflict.keep_mine"));
    const keepTheirs = button(say("review.conflict.keep_theirs.title"), () => settle(null), say("review.conflict.keep_theirs"));
    this.conflict.replaceChildren(
      element("h3", "", say("review.conflict", { name: conflict.name })),
      element("div", "texts", element("label", "", say("review.conflict.mine"), mine), element("div", "", say("review.conflict.theirs"), theirs)),
      element("div", "buttons", keepMine, keepTheirs),
    );
    if (this.root.contains(document.activeElement)) keepMine.focus();
  }

  // ---- what is done ------------------------------------------------------------------

  /** @param {number} index */
  async edit(index) {
    const picture = this.shown[index];
    if (!picture || !this.store) return;
    if (picture.problem) return this.say(picture.problem, true);
    this.showLarge(false);
    const store = this.store;
    try {
      const { unsaved } = picture;
      const text = unsaved ?? (await store.caption(picture));
      const seen = unsaved === undefined ? (picture.is_from_table ? null : text) : unsaved.trim(); // it may be saved while the editor is open
      this.editor.open(index, picture, text ?? "", (value) => store.saveCaption(picture.name, value, seen));
    } catch (error) {
      this.say(say("review.unreadable", { reason: sentence(error) }), true);
    }
  }

  /** @param {string} mark @param {number} index */
  mark(mark, index) {
    const picture = this.shown[index];
    if (!picture || !this.store) return;
    const { name } = picture;
    if (mark === "accept") {
      if (!picture.reason) return this.say(say("review.said.nothing_to_accept", { name }));
      return this.store.mark([name], "accepted", true, say("review.said.accepted", { name }));
    }
    if (mark === "excluded") {
      const on = !picture.is_excluded;
      return this.store.mark([name], "excluded", on, say(on ? "review.said.excluded" : "review.said.included", { name }));
    }
    const on = !picture.is_held_out;
    return this.store.mark([name], "held_out", on, say(on ? "review.said.held_out" : "review.said.given_back", { name }));
  }

  /** @param {"undo" | "redo"} turn */
  step(turn) {
    this.editor.save();
    this.store?.step(turn);
    this.grid.root.focus();
  }

  /** @param {KeyboardEvent} event */
  pressed(event) {
    if (event.key !== "Tab") event.stopPropagation(); // ComfyUI's own keys stay on the canvas
    if (event.key === "Escape" && this.escape(event)) return event.preventDefault();
    if (event.target === this.search && (event.key === "Enter" || event.key === "ArrowDown")) {
      this.grid.root.focus();
      return event.preventDefault();
    }
    if (event.target !== this.grid.root || event.altKey) return;
    if (this.key(event)) event.preventDefault();
  }

  /** Closes one thing. @param {KeyboardEvent} event */
  escape(event) {
    if (this.editor.isOpen) this.editor.cancel();
    else if (!this.help.hidden) this.showHelp(false);
    else if (!this.large.hidden) this.showLarge(false);
    else if (event.target === this.search && this.search.value) this.search.value = this.query = "";
    else if (event.target !== this.grid.root && !this.conflict.contains(/** @type {Node} */ (event.target))) this.grid.root.focus();
    else return false;
    this.draw();
    return true;
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether it meant something */
  key(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z" && key !== "y") return false;
      this.step(key === "y" || event.shiftKey ? "redo" : "undo");
      return true;
    }
    if (key === "?") return this.showHelp(this.help.hidden === true), true;
    if (key === "/") return this.search.focus(), this.search.select(), true;
    if (!this.shown.length) return false;
    const current = this.grid.current;
    const to = moved(key, current, this.shown.length, this.grid.layout.columns, this.grid.rowsOnPage);
    if (to !== null) this.grid.move(to);
    else if (key === "Enter" || key === "F2") this.edit(current);
    else if (key === " ") this.showLarge(this.large.hidden === true);
    else if (key === "a") this.mark("accept", current);
    else if (key === "x") this.mark("excluded", current);
    else if (key === "h") this.mark("held_out", current);
    else return false;
    return true;
  }
}

/** @param {HTMLSelectElement} select @param {ReturnType<typeof filterChoices>} choices @param {string} value */
function drawChoices(select, choices, value) {
  const shown = JSON.stringify(choices);
  if (select.dataset.shown !== shown) {
    select.dataset.shown = shown;
    select.replaceChildren(...choices.map(({ key, words, count, title }) => {
      return element("option", { value: key, title, textContent: say("review.filter", { filter: words, count }) });
    }));
  }
  select.value = value;
  select.title = choices.find(({ key }) => key === value)?.title ?? "";
}

/** @param {HTMLButtonElement} step @param {string} words empty where there is nothing to do @param {string} none */
function setStep(step, words, none) {
  step.disabled = !words;
  step.title = words || none;
  step.setAttribute("aria-label", step.title);
}

function keyTable() {
  const rows = KEYS.map(([keys, words]) => element("tr", "", element("th", "", keys), element("td", "", say(words))));
  return element("table", "", ...rows);
}

