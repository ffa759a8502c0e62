// @ts-check
/**
 * Keeps one run's history whole: asks the server for it once, and goes on with numbered messages.
 * A number that is missing, or another sitting of the trainer, makes it ask again. Knows no page; how to ask is given.
 */

import { addRow, emptyHistory, fromServer } from "./history.mjs";

export const MOST_WAITING = 1000; // messages; a server that never answers must not fill the page's memory
const ASK_AGAIN_MS = 1000; // after an answer that did not do, and not before

/** The server's messages of a run, and the kinds of rows that they are. */
export const MESSAGES = {
  "pistachio.step": "train",
  "pistachio.evaluation": "eval",
  "pistachio.probe": "probe",
  "pistachio.phase": "phase",
  "pistachio.note": "note",
  "pistachio.sample": "sample",
  "pistachio.finished": "finished",
};

/** @typedef {import("./history.mjs").History} History */

export class Feed {
  /**
   * @param {(run: string) => Promise<any>} ask GET /pistachio/runs/{name}/history; null where there is no such run
   * @param {(history: History | null) => void} changed
   * @param {(error: unknown) => void} failed
   */
  constructor(ask, changed, failed = () => {}) {
    this.ask = ask;
    this.changed = changed;
    this.failed = failed;
    /** @type {History | null} */
    this.history = null;
    /** @type {string | null} the run that is asked for */
    this.asking = null;
    this.question = 0;
    this.answeredAt = -Infinity;
    /** @type {ReturnType<typeof setTimeout> | null} */
    this.later = null;
    /** @type {{kind: string, data: any}[]} messages that the answer may lack */
    this.waiting = [];
  }

  /** @param {string} run */
  async load(run) {
    const question = ++this.question;
    if (this.later) clearTimeout(this.later);
    this.later = null;
    if (this.asking !== run) this.waiting = [];
    this.asking = run;
    let answer;
    try {
      answer = await this.ask(run);
    } catch (error) {
      if (question !== this.question) return;
      this.asking = null;
      this.answeredAt = Date.now();
      this.failed(error);
      return; // the next message asks again
    }
    if (question !== this.question) return; // a later question was asked meanwhile
    this.asking = null;
    this.answeredAt = Date.now();
    this.history = answer ? fromServer(answer) : null;
    const waiting = this.waiting;
    this.waiting = [];
    for (const { kind, data } of waiting) this.take(kind, data);
    this.changed(this.history);
  }

  /** The run that is shown, anew: after the connection was lost, or a run ended without saying so. */
  reload() {
    const run = this.asking ?? this.history?.run;
    if (run) this.load(run);
  }

  /** @param {string} kind of row @param {any} data of the message */
  receive(kind, data) {
    if (this.asking === data.run) this.wait(kind, data);
    else {
      this.take(kind, data);
      this.changed(this.history);
    }
  }

  /** @param {string} kind @param {any} data */
  take(kind, data) {
    const { history } = this;
    const isOurs = history !== null && history.run === data.run && history.sitting === data.sitting;
    if (isOurs && data.sequence <= history.sequence) return; // the answer had it
    if (!isOurs || data.sequence !== history.sequence + 1) {
      // What came before this page did, or was lost on the way.
      if (history?.run !== data.run) this.history = emptyHistory(data.run);
      this.wait(kind, data);
      this.loadSoon(data.run);
      return;
    }
    history.sequence = data.sequence;
    if (history.status !== "running" && kind !== "finished") {
      history.status = "running"; // it is resumed or continued
      history.chosenStep = null;
      history.tied = null;
    }
    addRow(history, { ...data, kind });
  }

  /** For the answer. The oldest goes where there are too many: the answer has it, or its number is missed and it is asked again. @param {string} kind @param {any} data */
  wait(kind, data) {
    this.waiting.push({ kind, data });
    if (this.waiting.length > MOST_WAITING) this.waiting.shift();
  }

  /** @param {string} run */
  loadSoon(run) {
    if (this.asking === run || this.later) return;
    const wait = ASK_AGAIN_MS - (Date.now() - this.answeredAt);
    if (wait <= 0) {
      this.load(run);
      return;
    }
    this.later = setTimeout(() => {
      this.later = null;
      this.load(run);
    }, wait);
  }
}
