// @ts-check
/**
 * The dialog that a folder is chosen in: one level at a time of the folders that the pack may read, with their pictures.
 * `chooseFolder` is all that others need. Knows nothing of nodes.
 */

import { addStylesheet, element } from "./elements.mjs";
import { contentWords, filtered, hasFolders, moved } from "./folders_list.mjs";
import { getJson, onMessage, url } from "./host.mjs";
import { button, icon } from "./review_parts.mjs";
import { say, sayCounted } from "./words.mjs";

const THUMBNAIL_PX = 96;
const MOST_ROWS = 500; // more are found by the filter

addStylesheet("folders.css");

/**
 * @typedef {import("./folders_list.mjs").Folder} Folder
 * @typedef {import("./folders_list.mjs").Level} Level
 */

/** @param {string} folder @param {{file: string, v: string}} picture */
export function thumbnail(folder, { file, v }) {
  const query = new URLSearchParams({ folder, file, size: String(THUMBNAIL_PX), v });
  return element("img", { src: url(`/pistachio/thumbnail?${query}`), alt: "", loading: "lazy", draggable: false });
}

class FolderDialog {
  /** @param {{folder: string, mayBeNew: boolean, whenChosen: (folder: string | null) => void}} how */
  constructor({ folder, mayBeNew, whenChosen }) {
    this.mayBeNew = mayBeNew;
    /** @type {string | null} */
    this.answer = null;
    /** @type {Level} */
    this.level = { at: "", chosen: "", trail: [], itself: null, folders: [] };
    /** @type {Folder[]} */
    this.shown = [];
    this.current = 0;
    this.asked = 0;
    this.before = /** @type {HTMLElement | null} */ (document.activeElement);
    this.title = element("h2", "", say("folders.title"));
    this.trail = element("nav", { className: "trail", ariaLabel: say("folders.trail") });
    this.filter = element("input", { type: "search", placeholder: say("folders.filter"), ariaLabel: say("folders.filter") });
    this.filter.addEventListener("input", () => this.show(0));
    this.list = element("div", { className: "list", tabIndex: 0 });
    this.list.setAttribute("role", "grid"); // an option of a listbox may hold no button
    this.list.setAttribute("aria-label", say("folders.list"));
    this.note = element("div", { className: "note" });
    this.note.setAttribute("role", "status");
    this.name = element("input", { className: "name", placeholder: say("folders.new"), ariaLabel: say("folders.new"), hidden: !mayBeNew });
    this.name.addEventListener("input", () => this.drawFoot());
    this.chosen = element("span", "chosen");
    this.use = element("button", { className: "use", onclick: () => this.choose() });
    const close = button(say("folders.close"), () => this.dialog.close(), icon("close"));
    close.classList.add("close");
    this.dialog = element(
      "dialog", { className: "pistachio-folders", ariaLabel: say("folders.title") },
      element("div", "head", this.title, this.filter, close), this.trail, this.list, this.note,
      element("div", "foot", this.chosen, this.name, element("button", { textContent: say("folders.cancel"), onclick: () => this.dialog.close() }), this.use),
    );
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
    for (const type of ["keyup", "keypress", "copy", "paste", "cut", "wheel"]) this.dialog.addEventListener(type, (event) => event.stopPropagation());
    this.dialog.addEventListener("close", () => {
      this.dialog.remove();
      opened = null;
      this.before?.focus();
      whenChosen(this.answer);
    });
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.list.focus();
    this.load(`beside=${encodeURIComponent(folder)}`);
  }

  /** @param {string} query @param {string} [from] the folder to stand on */
  async load(query, from = "") {
    const question = ++this.asked;
    this.query = query;
    this.dialog.ariaBusy = "true";
    try {
      const level = await getJson(`/pistachio/folders?${query}`);
      if (question !== this.asked) return;
      this.level = level;
      this.problem = "";
    } catch (error) {
      if (question !== this.asked) return;
      this.problem = error instanceof TypeError ? "" : String(error instanceof Error ? error.message : error); // the connection is told of elsewhere
    }
    this.dialog.ariaBusy = "false";
    this.filter.value = "";
    const on = from || this.level.chosen;
    this.drawTrail();
    this.show(Math.max(0, this.level.folders.findIndex(({ folder }) => folder === on)));
  }

  /** @param {string} at @param {string} [from] */
  open(at, from = "") {
    return this.load(`at=${encodeURIComponent(at)}`, from);
  }

  // ---- what is shown ---------------------------------------------------------------

  drawTrail() {
    const steps = [{ name: say("folders.places"), at: "" }, ...this.level.trail];
    this.trail.replaceChildren(...steps.map(({ name, at }, i) => {
      const step = element("button", { textContent: name, onclick: () => this.open(at, steps[i + 1]?.at).then(() => this.list.focus()) });
      if (i === steps.length - 1) step.ariaCurrent = "location";
      return step;
    }));
  }

  /** @param {number} current */
  show(current) {
    const found = filtered(this.level.folders, this.filter.value);
    this.shown = found.slice(0, MOST_ROWS);
    this.current = Math.min(current, Math.max(0, this.shown.length - 1));
    this.list.replaceChildren(...this.shown.map((folder, index) => this.row(folder, index)));
    this.note.textContent = this.problem
      || (found.length > MOST_ROWS ? sayCounted("folders.many", found.length - MOST_ROWS) : "")
      || (this.shown.length ? "" : this.filter.value ? say("folders.no_match") : say("folders.empty"));
    this.note.classList.toggle("problem", Boolean(this.problem));
    this.mark(true);
  }

  /** @param {Folder} folder @param {number} index */
  row(folder, index) {
    const pictures = element("span", "pictures", ...(folder.first ?? []).map((picture) => thumbnail(folder.folder, picture)));
    const words = element("span", "words", element("strong", "", folder.name), " ", element("span", folder.problem ? "problem" : "quiet", contentWords(folder)));
    const row = element("div", "row", pictures, words);
    row.id = `pistachio-folder-${index}`;
    row.setAttribute("role", "row");
    words.setAttribute("role", "gridcell");
    let label = `${folder.name}. ${contentWords(folder)}`;
    if (hasFolders(folder)) {
      const count = sayCounted("folders.inner", folder.num_folders ?? 0);
      const inner = button(say("folders.open", { name: folder.name }), () => this.open(folder.folder).then(() => this.list.focus()), count);
      inner.className = "inner";
      inner.tabIndex = -1; // the arrow key does the same
      const cell = element("span", "", inner);
      cell.setAttribute("role", "gridcell");
      row.append(" ", cell);
      label += `. ${count}`;
    }
    row.setAttribute("aria-label", label);
    row.addEventListener("click", (event) => {
      if (/** @type {Element} */ (event.target).closest("button")) return;
      this.current = index;
      this.mark(false);
    });
    row.addEventListener("dblclick", () => {
      this.current = index;
      this.choose();
    });
    return row;
  }

  /** @param {boolean} scroll */
  mark(scroll) {
    [...this.list.children].forEach((row, index) => row.setAttribute("aria-selected", String(index === this.current)));
    const row = this.list.children[this.current];
    if (row) this.list.setAttribute("aria-activedescendant", row.id);
    else this.list.removeAttribute("aria-activedescendant");
    if (scroll) row?.scrollIntoView({ block: "nearest" });
    this.drawFoot();
  }

  /** The folder that "Use" takes. @returns {string} */
  get choice() {
    const name = this.mayBeNew ? this.name.value.trim() : "";
    if (name) return this.level.at ? joined(this.level.at, name) : "";
    return this.shown[this.current]?.folder ?? this.level.itself?.folder ?? "";
  }

  drawFoot() {
    this.chosen.textContent = this.choice;
    this.chosen.title = this.choice;
    this.use.textContent = say("folders.use");
    this.use.disabled = !this.choice;
    this.name.hidden = !this.mayBeNew || !this.level.at;
  }

  // ---- what is done ------------------------------------------------------------------

  choose() {
    if (!this.choice) return;
    this.answer = this.choice;
    this.dialog.close();
  }

  /** @param {KeyboardEvent} event */
  pressed(event) {
    event.stopPropagation(); // the canvas has keys of its own
    if (event.key === "Escape" && this.filter.value) {
      event.preventDefault();
      this.filter.value = "";
      this.show(0);
      return;
    }
    const isInText = event.target === this.filter || event.target === this.name;
    if (event.target === this.name) {
      if (event.key === "Enter") this.choose();
      return;
    }
    if (event.target !== this.list && event.target !== this.filter) return;
    const rows = Math.max(1, Math.floor(this.list.clientHeight / (/** @type {HTMLElement | undefined} */ (this.list.children[0])?.offsetHeight || 56)) - 1);
    const to = isInText && (event.key === "Home" || event.key === "End") ? null : moved(event.key, this.current, this.shown.length, rows);
    if (to !== null) {
      this.current = to;
      this.mark(true);
    } else if (event.key === "Enter") this.choose();
    else if (!isInText && event.key === "ArrowRight") this.enter();
    else if (!isInText && (event.key === "ArrowLeft" || event.key === "Backspace")) this.leave();
    else if (!isInText && (event.key === "/" || (event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey && !event.altKey))) {
      this.filter.focus(); // the letter goes into it
      if (event.key !== "/") return;
    } else return;
    event.preventDefault();
  }

  enter() {
    const folder = this.shown[this.current];
    if (folder && hasFolders(folder)) this.open(folder.folder);
  }

  leave() {
    const { trail } = this.level;
    if (trail.length) this.open(trail.at(-2)?.at ?? "", trail.at(-1)?.at ?? "");
  }
}

/** @param {string} at @param {string} name */
const joined = (at, name) => (at === "input" ? name : `${at}/${name}`);

/** @type {FolderDialog | null} */
let opened = null;

/**
 * Asks for a folder. @param {string} folder that stands there now @param {{mayBeNew?: boolean}} [how] mayBeNew: it need not exist
 * @returns {Promise<string | null>} as a node's widget takes it; null where the dialog was left
 */
export function chooseFolder(folder, { mayBeNew = false } = {}) {
  if (opened) return Promise.resolve(null);
  return new Promise((resolve) => {
    opened = new FolderDialog({ folder, mayBeNew, whenChosen: resolve });
  });
}

onMessage("reconnected", () => {
  if (opened?.query) opened.load(opened.query);
});
