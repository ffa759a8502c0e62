import assert from "node:assert/strict";
import test from "node:test";

import { Feed, MOST_WAITING } from "../../js/feed.mjs";
import { CAPACITY, Trace } from "../../js/trace.mjs";

/** A trainer and its server: rows on the disk, messages numbered, answers that the test lets go. */
class Server {
  constructor(run = "anna") {
    Object.assign(this, { run, sitting: "one", sequence: 0, steps: [], status: "running", asked: [] });
  }

  /** One message with these steps, as the page gets it. */
  message(...steps) {
    this.steps.push(...steps);
    const rows = steps.map((step) => [step, step / 100, 0.1]);
    return { run: this.run, sitting: this.sitting, sequence: ++this.sequence, step: steps.at(-1), num_steps: 100, rows };
  }

  answer() {
    return {
      name: this.run, status: this.status, live: { sitting: this.sitting, sequence: this.sequence, phase: "", seconds_left: 5 }, num_steps: 100, step: this.steps.at(-1) ?? 0,
      training: { stride: 1, steps: [...this.steps], low: this.steps.map((step) => step / 100), high: this.steps.map((step) => step / 100) },
      evaluations: [], probes: [], samples: [], note: "", memory: null, seconds_per_step: 0.1, chosen_step: null, verdict: "",
    };
  }

  /** `await ask()` comes back when the test calls what is in `asked`. */
  ask = () => new Promise((resolve, reject) => this.asked.push({ go: (answer = this.answer()) => resolve(answer), fail: reject }));
}

const settle = () => new Promise((resolve) => setImmediate(resolve));
const stepsOf = ({ history }) => Array.from(history.training.steps.subarray(0, history.training.count));

async function loaded(server) {
  const feed = new Feed(server.ask, () => {});
  feed.load(server.run);
  server.asked.shift().go();
  await settle();
  return feed;
}

test("a page that comes in the middle has what came before it, once", async () => {
  const server = new Server();
  server.message(1, 2, 3);
  const feed = new Feed(server.ask, () => {});
  feed.load("anna");
  const before = server.message(4, 5); // the answer has it, and it comes late
  const answer = server.answer();
  const after = server.message(6, 7);
  feed.receive("train", after); // the answer lacks it, and it comes early
  server.asked.shift().go(answer);
  await settle();
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4, 5, 6, 7]);
  feed.receive("train", before);
  feed.receive("train", after);
  feed.receive("train", server.message(8));
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.equal(server.asked.length, 0);
  assert.equal(feed.history.sequence, 4);
});

test("rows on the disk that no message has taken yet come once", async () => {
  const server = new Server();
  server.message(1, 2);
  const pending = server.message(3, 4);
  const answer = { ...server.answer(), live: { sitting: "one", sequence: 1, phase: "", seconds_left: null } };
  const feed = new Feed(server.ask, () => {});
  feed.load("anna");
  server.asked.shift().go(answer);
  await settle();
  feed.receive("train", pending);
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4]);
});

test("a message that was lost is noticed by the next one", async () => {
  const server = new Server();
  server.message(1);
  const feed = await loaded(server);
  feed.answeredAt = -Infinity;
  server.message(2, 3); // lost
  feed.receive("train", server.message(4));
  assert.equal(server.asked.length, 1);
  feed.receive("train", server.message(5)); // while it is asked for
  server.asked.shift().go();
  await settle();
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4, 5]);
});

test("another sitting of the trainer makes the page ask again: steps may have been trained anew", async () => {
  const server = new Server();
  server.message(1, 2, 3, 4);
  const feed = await loaded(server);
  feed.answeredAt = -Infinity;
  Object.assign(server, { sitting: "two", sequence: 0, steps: [1, 2] });
  feed.receive("train", server.message(3));
  server.asked.shift().go();
  await settle();
  assert.deepEqual(stepsOf(feed), [1, 2, 3]);
  assert.equal(feed.history.sitting, "two");
});

test("a connection that was lost: the history is asked for, and goes on from there", async () => {
  const server = new Server();
  server.message(1);
  const feed = await loaded(server);
  server.message(2);
  server.message(3);
  feed.reload();
  server.asked.shift().go();
  await settle();
  feed.receive("train", server.message(4));
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4]);
});

test("a server that gives no answer is asked again with the next message, and not more than once a second", async () => {
  const server = new Server();
  server.message(1);
  const failures = [];
  const feed = new Feed(server.ask, () => {}, (error) => failures.push(error.message));
  feed.load("anna");
  server.asked.shift().fail(new Error("gone"));
  await settle();
  assert.deepEqual(failures, ["gone"]);
  for (let step = 2; step < 10; step++) feed.receive("train", server.message(step));
  assert.equal(server.asked.length, 0);
  clearTimeout(feed.later);
  feed.later = null;
  feed.answeredAt = -Infinity;
  feed.receive("train", server.message(10));
  server.asked.shift().go();
  await settle();
  assert.deepEqual(stepsOf(feed), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
});

test("the last question counts, whichever answer comes first", async () => {
  const [anna, ben] = [new Server("anna"), new Server("ben")];
  anna.message(1);
  ben.message(7);
  const feed = new Feed((run) => (run === "anna" ? anna : ben).ask(), () => {});
  feed.load("anna");
  feed.load("ben");
  ben.asked.shift().go();
  await settle();
  anna.asked.shift().go();
  await settle();
  assert.equal(feed.history.run, "ben");
  assert.deepEqual(stepsOf(feed), [7]);
});

test("a finished run that is continued runs again", async () => {
  const server = new Server();
  server.message(1);
  const feed = await loaded(server);
  feed.history.status = "finished";
  feed.history.chosenStep = 1;
  feed.receive("train", server.message(2));
  assert.deepEqual([feed.history.status, feed.history.chosenStep], ["running", null]);
  feed.receive("finished", { ...server.message(3), verdict: "Good.", chosen_step: 3 });
  assert.deepEqual([feed.history.status, feed.history.chosenStep, feed.history.verdict], ["finished", 3, "Good."]);
});

test("a day of messages, with gaps, failures and a server that hangs for hours, keeps its size and ends whole", async () => {
  const MESSAGES = 120_000, EACH = 3; // steps of a message, as of ten a second
  const served = new Trace(); // what the server has on its disk, thinned as it thins it
  const state = { sequence: 0, step: 0, is: "well", asked: 0, hanging: [] };
  const answer = () => ({
    name: "anna", status: "running", live: { sitting: "one", sequence: state.sequence, phase: "", seconds_left: 5 }, num_steps: MESSAGES * EACH, step: state.step,
    training: { stride: served.stride, steps: [...served.steps.subarray(0, served.count)], low: [...served.lows.subarray(0, served.count)], high: [...served.highs.subarray(0, served.count)] },
    evaluations: [], probes: [], samples: [], note: "", memory: null, seconds_per_step: 0.1, chosen_step: null, verdict: "",
  });
  const feed = new Feed(() => {
    state.asked++;
    if (state.is === "failing") return Promise.reject(new Error("gone"));
    return state.is === "hanging" ? new Promise((resolve) => state.hanging.push(resolve)) : Promise.resolve(answer());
  }, () => {});
  let most = 0;
  for (let i = 1; i <= MESSAGES; i++) {
    const rows = Array.from({ length: EACH }, () => [++state.step, Math.sin(state.step), 0.1]);
    for (const [step, loss] of rows) served.add(step, loss);
    const data = { run: "anna", sitting: "one", sequence: ++state.sequence, step: state.step, num_steps: MESSAGES * EACH, rows };
    if (i === 30_000) state.is = "failing";
    if (i === 60_000) state.is = "hanging";
    if (i === 90_000) {
      state.is = "well";
      for (const go of state.hanging.splice(0)) go(answer());
      await settle();
    }
    if (i % 997 === 0) { // lost on the way, or another second has come
      feed.answeredAt = -Infinity;
      if (feed.later) clearTimeout(feed.later);
      feed.later = null;
      await settle();
      continue;
    }
    feed.receive(i % 5000 === 0 ? "note" : "train", i % 5000 === 0 ? { ...data, text: "A note." } : data);
    most = Math.max(most, feed.waiting.length);
  }
  feed.reload();
  await settle();
  if (feed.later) clearTimeout(feed.later);
  const { history } = feed;
  assert.deepEqual([history.sequence, history.step], [MESSAGES, MESSAGES * EACH]);
  assert.ok(history.step - history.training.last < history.training.stride); // an answer has the first step of each stretch
  assert.ok(history.training.count <= CAPACITY && history.training.steps.length === CAPACITY);
  assert.equal(most, MOST_WAITING); // it was reached while nobody answered, and not passed
  assert.deepEqual([feed.waiting.length, state.hanging.length], [0, 0]);
  assert.ok(state.asked < 200, `${state.asked} questions`);
});
