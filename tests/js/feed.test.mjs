import assert from "node:assert/strict";
import test from "node:test";

import { Feed } from "../../js/feed.mjs";

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
