// @ts-check
/**
 * Files on their way into a dataset's folder: a few at a time, each followed by its captions, with a way to stop and to go on.
 * Nothing is overwritten: the server says what became of each. Knows no page.
 */

import { following, outcomeWords } from "./drop_plan.mjs";
import { sendBytes } from "./host.mjs";
import { say, translated } from "./words.mjs";

const AT_ONCE = 3;

/**
 * @typedef {import("./drop_files.mjs").DroppedFile} DroppedFile
 * @typedef {{picture: DroppedFile, sidecars: DroppedFile[]}} Group
 * @typedef {{done: number, total: number, share: number, name: string}} Progress share: of the bytes, 0 to 1
 */

export class Upload {
  /**
   * @param {{groups: Group[], loose: DroppedFile[], table: DroppedFile | null, refused: import("./drop_plan.mjs").Refused[]}} plan
   * @param {{folder: string, videos: boolean, whenMoved: (progress: Progress) => void}} how
   */
  constructor(plan, { folder, videos, whenMoved }) {
    this.folder = folder;
    this.videos = videos;
    this.whenMoved = whenMoved;
    this.table = plan.table;
    // A caption without its picture here is one of a picture that is there.
    /** @type {Group[]} what is not done yet */
    this.waiting = [...plan.groups, ...plan.loose.map((caption) => ({ picture: caption, sidecars: [] }))];
    /** @type {Map<Group, string | null>} what the pictures that arrived are called; null: refused */
    this.names = new Map();
    this.isOfCaption = new Set(plan.loose.map(({ path }) => path));
    this.total = this.waiting.reduce((sum, { sidecars }) => sum + 1 + sidecars.length, plan.table ? 1 : 0);
    this.totalBytes = Math.max(1, this.waiting.reduce((sum, group) => sum + bytesOf(group), plan.table?.size ?? 0));
    this.sentBytes = 0;
    this.done = 0;
    /** @type {import("./drop_plan.mjs").Outcome} */
    this.outcome = { added: 0, captions: 0, same: 0, renamed: 0, kept: 0, refused: [...plan.refused], unsent: 0 };
    /** @type {string[]} sentences about single files */
    this.notes = plan.refused.map(({ path, reason }) => `${path}: ${reason}`);
    this.controller = new AbortController();
    /** Why it stopped: "", "cancelled" or "unreachable". */
    this.stopped = "";
    /** @type {Map<DroppedFile, number>} bytes sent of the files under way */
    this.underWay = new Map();
  }

  /** Sends what is not done yet. May be called again after it stopped: what arrived is not sent twice. */
  async run() {
    this.stopped = "";
    this.controller = new AbortController();
    this.underWay.clear();
    await Promise.all(Array.from({ length: AT_ONCE }, () => this.work()));
    if (this.table && !this.stopped) await this.sendTable(this.table);
    this.outcome.unsent = this.stopped ? this.total - this.done : 0;
  }

  cancel() {
    this.stopped = "cancelled";
    this.controller.abort();
  }

  get words() {
    return outcomeWords(this.outcome, this.folder);
  }

  async work() {
    for (let group = this.waiting.shift(); group && !this.stopped; group = this.waiting.shift()) {
      try {
        await this.sendGroup(group);
      } catch (error) {
        this.waiting.unshift(group);
        if (!this.stopped) this.stopped = "unreachable";
        if (!(error instanceof TypeError) && !this.controller.signal.aborted) throw error;
        return;
      }
    }
  }

  /** @param {Group} group */
  async sendGroup(group) {
    if (!this.names.has(group)) {
      const answer = await this.send(group.picture, group.picture.path, this.isOfCaption.has(group.picture.path));
      this.names.set(group, answer ? answer.name : null);
      this.finished(group.picture);
    }
    const at = this.names.get(group) ?? null;
    while (group.sidecars.length) {
      const sidecar = group.sidecars[0];
      // The caption of a picture that was refused is of no use.
      if (at !== null) await this.send(sidecar, following(sidecar.path, group.picture.path, at), true);
      group.sidecars.shift();
      this.finished(sidecar);
    }
  }

  /** @param {DroppedFile} table */
  async sendTable(table) {
    if (this.outcome.renamed) {
      // It names pictures by their old names, which are those of others here.
      this.refuse(table.path, say("drop.reason.table"));
    } else {
      try {
        await this.send(table, table.path, true);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
        this.stopped ||= "unreachable";
        return;
      }
    }
    this.table = null;
    this.finished(table);
  }

  /** @param {DroppedFile} file @param {string} path @param {boolean} isSidecar @returns {Promise<{name: string} | null>} null: refused */
  async send(file, path, isSidecar) {
    const query = new URLSearchParams({ folder: this.folder, path, videos: this.videos ? "1" : "0", exact: isSidecar ? "1" : "0" });
    const { status, body } = await sendBytes(`/pistachio/upload?${query}`, file.file, {
      signal: this.controller.signal,
      whenMoved: (bytes) => {
        this.underWay.set(file, bytes);
        this.tell(file.path);
      },
    });
    if (status !== 200) {
      this.refuse(file.path, body?.error ?? say("drop.reason.http", { status: String(status) }));
      return null;
    }
    const { state, name, words, words_message: message } = body;
    if (state === "kept") this.outcome.kept += 1;
    else if (state === "same") this.outcome.same += isSidecar ? 0 : 1;
    else if (isSidecar) this.outcome.captions += /\.txt$|\.json$/i.test(name) ? 1 : 0;
    else this.outcome.added += 1;
    if (state === "renamed") {
      this.outcome.renamed += 1;
      this.notes.push(say("drop.note.renamed", { before: file.path, after: name }));
    }
    if (words) this.notes.push(translated(words, message));
    return { name };
  }

  /** @param {string} path @param {string} reason */
  refuse(path, reason) {
    this.outcome.refused.push({ path, reason });
    this.notes.push(reason.includes(path.slice(path.lastIndexOf("/") + 1)) ? reason : `${path}: ${reason}`);
  }

  /** @param {DroppedFile} file */
  finished(file) {
    this.underWay.delete(file);
    this.sentBytes += file.size;
    this.done += 1;
    this.tell(file.path);
  }

  /** @param {string} name */
  tell(name) {
    const bytes = [...this.underWay.values()].reduce((sum, each) => sum + each, this.sentBytes);
    this.whenMoved({ done: this.done, total: this.total, share: Math.min(1, bytes / this.totalBytes), name });
  }
}

/** @param {Group} group */
const bytesOf = (group) => group.sidecars.reduce((sum, { size }) => sum + size, group.picture.size);
