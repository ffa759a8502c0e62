// @ts-check
/**
 * A folder under review, as the server has it, and every change asked of the server, one after the other.
 * A text that could not be saved is kept until it is. Knows neither the page nor ComfyUI's scripts.
 */

import { changeWords } from "./review_words.mjs";
import { say, translated } from "./words.mjs";

const CHECK_INTERVAL_MS = 700;

/**
 * @typedef {import("./review_list.mjs").Picture} Picture
 * @typedef {import("./review_list.mjs").Finding} Finding
 * @typedef {{folder: string, recursive?: boolean, videos?: boolean}} Scope
 * @typedef {{name: string, mine: string, theirs: string | null}} Conflict
 * @typedef {{text: string, seen: string | null, hasFailed: boolean}} Unsaved a text that is not on the disk yet, and the one that it replaces
 *
 * @typedef {object} Host what is asked of the server
 * @property {(path: string) => Promise<any>} getJson
 * @property {(path: string, content: object) => Promise<{status: number, body: any}>} postJson
 * @property {(path: string) => string} url
 */

export class ReviewStore extends EventTarget {
  /** @param {Scope} scope @param {Host} host */
  constructor(scope, host) {
    super();
    this.host = host;
    this.scope = { recursive: true, videos: false, ...scope };
    /** @type {Picture[]} */
    this.pictures = [];
    /** @type {Finding[]} */
    this.findings = [];
    this.checking = ""; // words while it is checked
    this.undoWords = "";
    this.redoWords = "";
    this.problem = ""; // why the folder can't be shown
    this.isLoaded = false;
    /** @type {Map<string, Unsaved>} by name */
    this.unsaved = new Map();
    /** @type {Conflict[]} */
    this.conflicts = [];
    this.turn = Promise.resolve();
    this.changes = 0;
  }

  /** Something changed. @param {string} [words] for the person */
  tell(words = "", isError = false) {
    this.dispatchEvent(new CustomEvent("change", { detail: { words, isError } }));
  }

  // ---- looking -------------------------------------------------------------------

  /** @param {Record<string, string | number>} [more] */
  query(more = {}) {
    const { folder, recursive, videos } = this.scope;
    const values = { folder, recursive: recursive ? "1" : "0", videos: videos ? "1" : "0", ...more };
    return Object.entries(values).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  }

  /** @param {Picture} picture @param {number} sizePx */
  thumbnail(picture, sizePx) {
    return this.host.url(`/pistachio/thumbnail?folder=${encodeURIComponent(this.scope.folder)}&file=${encodeURIComponent(picture.name)}&size=${sizePx}&v=${picture.version ?? ""}`);
  }

  /** @returns {Promise<void>} */
  async load() {
    const changes = this.changes;
    let found;
    try {
      found = await this.host.getJson(`/pistachio/review?${this.query()}`);
    } catch (error) {
      this.problem = sentence(error);
      this.tell();
      return;
    }
    if (changes !== this.changes) return this.load(); // its answer is older than what was changed meanwhile
    this.problem = "";
    this.isLoaded = true;
    const before = new Map(this.pictures.map((picture) => [picture.name, picture]));
    this.pictures = found.pictures.map((/** @type {Picture} */ picture) => this.same(before.get(picture.name), picture));
    this.undoWords = changeWords(found.undo);
    this.redoWords = changeWords(found.redo);
    this.tell(found.notes.join(" "));
  }

  /** The picture as it was where nothing changed: what is drawn of it stays. @param {Picture | undefined} before @param {Picture} now */
  same(before, now) {
    const unsaved = this.unsaved.get(now.name)?.text;
    const picture = unsaved === undefined ? now : { ...now, unsaved };
    return before && JSON.stringify(before) === JSON.stringify(picture) ? before : picture;
  }

  /** The whole caption: a long one is cut in the list. @param {Picture} picture @returns {Promise<string | null>} */
  async caption(picture) {
    return picture.is_cut ? (await this.host.getJson(`/pistachio/review/caption?${this.query({ name: picture.name })}`)).caption : picture.caption;
  }

  // ---- changing ------------------------------------------------------------------

  /** @template T @param {() => Promise<T>} change @returns {Promise<T>} when the changes before it are done */
  inTurn(change) {
    const done = this.turn.then(change);
    this.turn = done.then(() => {}, () => {});
    return done;
  }

  /** @param {string} name @param {string} text @param {string | null} seen the text of the caption's own file that the person saw */
  saveCaption(name, text, seen) {
    const before = this.unsaved.get(name);
    // Whoever goes on with an unsaved text has not seen what was written into the file since.
    this.unsaved.set(name, { text, seen: before ? before.seen : seen, hasFailed: false });
    this.refresh(name);
    return this.inTurn(async () => {
      const waiting = this.unsaved.get(name);
      if (!waiting) return; // an earlier turn saved it
      const answer = await this.post("caption", { name, text, seen: waiting.seen });
      const now = this.unsaved.get(name);
      if (!answer) {
        if (now) now.hasFailed = true;
        return this.tell();
      }
      if (answer.status === 409) {
        if (now) now.hasFailed = false;
        this.conflicts = [...this.conflicts.filter((conflict) => conflict.name !== name), { name, mine: text, theirs: answer.body.now }];
        this.tell(answer.body.error, true);
        this.load();
        return;
      }
      if (now?.text === text) this.unsaved.delete(name);
      else if (now) now.seen = text.trim(); // as the server writes it
      this.conflicts = this.conflicts.filter((conflict) => conflict.name !== name);
      this.receive(answer.body, say("review.said.saved", { name }));
    });
  }

  /** Whether there is a text that only another try may save. */
  get hasFailed() {
    return [...this.unsaved.values()].some(({ hasFailed }) => hasFailed);
  }

  /** What could not be saved, once more. */
  async saveAgain() {
    const failed = [...this.unsaved].filter(([, { hasFailed }]) => hasFailed);
    await Promise.all(failed.map(([name, { text, seen }]) => this.saveCaption(name, text, seen)));
  }

  /** @param {Conflict} conflict @param {string | null} text to keep; null: the other one */
  async settle(conflict, text) {
    this.conflicts = this.conflicts.filter((one) => one !== conflict);
    this.unsaved.delete(conflict.name);
    if (text !== null) return this.saveCaption(conflict.name, text, conflict.theirs);
    await this.load();
  }

  /** @param {string[]} names @param {"excluded" | "held_out" | "accepted"} mark @param {boolean} on @param {string} words */
  mark(names, mark, on, words) {
    return this.inTurn(async () => {
      const answer = await this.post("mark", { names, mark, on });
      if (answer) this.receive(answer.body, words);
    });
  }

  /** @param {"undo" | "redo"} turn */
  step(turn) {
    return this.inTurn(async () => {
      const answer = await this.post(turn, {});
      if (!answer) return;
      const change = changeWords(answer.body.words), isUndo = turn === "undo";
      if (change) this.receive(answer.body, say(isUndo ? "review.said.undone" : "review.said.redone", { change }));
      else this.receive(answer.body, say(isUndo ? "review.undo.none" : "review.redo.none"));
    });
  }

  /** @param {string} path @param {object} body @returns {Promise<{status: number, body: any} | null>} null: it failed, and the person was told */
  async post(path, body) {
    this.changes += 1;
    try {
      const answer = await this.host.postJson(`/pistachio/review/${path}`, { ...this.scope, ...body });
      if (answer.status === 200 || answer.status === 409) return answer;
      this.tell(answer.body?.error ?? say("review.refused", { status: answer.status }), true);
    } catch (error) {
      this.tell(say("review.unreachable", { reason: sentence(error) }), true);
    }
    return null;
  }

  /** @param {{pictures: Picture[], undo: string, redo: string}} answer @param {string} words */
  receive(answer, words) {
    const changed = new Map(answer.pictures.map((picture) => [picture.name, this.same(undefined, picture)]));
    this.pictures = this.pictures.map((picture) => changed.get(picture.name) ?? picture);
    this.undoWords = changeWords(answer.undo);
    this.redoWords = changeWords(answer.redo);
    this.tell(words);
  }

  /** @param {string} name */
  refresh(name) {
    this.pictures = this.pictures.map((picture) => (picture.name === name ? this.same(undefined, { ...picture, unsaved: undefined }) : picture));
    this.tell();
  }

  // ---- checking ------------------------------------------------------------------

  /** What Check Dataset finds; asked for until it is there. @param {{trigger_word?: string, resolution?: number}} settings @param {boolean} start */
  async check(settings, start) {
    if (this.checking) return;
    this.checking = say("review.checking");
    this.tell();
    try {
      for (let first = start ? "1" : "0"; ; first = "0") {
        const found = await this.host.getJson(`/pistachio/review/findings?${this.query({ ...settings, start: first })}`);
        if (found.state === "running") {
          this.checking = found.total ? say("review.checking.percent", { percent: Math.floor((100 * found.done) / found.total) }) : say("review.checking");
          this.tell();
          await new Promise((resolve) => setTimeout(resolve, CHECK_INTERVAL_MS));
          continue;
        }
        this.checking = "";
        if (found.state === "done") this.findings = found.findings.map(inTheUsersLanguage);
        const verdict = translated(found.verdict ?? "", found.verdict_message);
        const told = this.findings.length ? say("review.checked.found", { verdict }) : say("review.checked", { verdict });
        this.tell(start ? found.error ?? told : "", found.state === "failed");
        return;
      }
    } catch (error) {
      this.checking = "";
      this.tell(say("review.check.failed", { reason: sentence(error) }), true);
    }
  }
}

/** @param {any} finding of GET /pistachio/review/findings @returns {Finding} */
function inTheUsersLanguage({ topic, topic_message, words, words_message, advice, advice_message, ...rest }) {
  return { ...rest, topic: translated(topic, topic_message), words: translated(words, words_message), advice: translated(advice, advice_message) };
}

/** @param {unknown} error */
export const sentence = (error) => (error instanceof Error ? error.message : String(error));
