import assert from "node:assert/strict";
import test from "node:test";

import { addRow, emptyHistory } from "../../js/history.mjs";
import { News } from "../../js/news.mjs";

/** @param {number} secondsPerStep */
function running(secondsPerStep) {
  const history = emptyHistory("a");
  Object.assign(history, { status: "running", sitting: "x", sequence: 1, secondsPerStep });
  return history;
}

test("a run that tells nothing for minutes is silent, from its last message on", () => {
  const news = new News(), history = running(0.5);
  assert.deepEqual([1000, 1119, 1120, 1300].map((now) => news.silence(history, "", now)), [null, null, 120, 300]);
  history.sequence = 2;
  assert.deepEqual([1301, 1420, 1421].map((now) => news.silence(history, "", now)), [null, null, 120]);
});

test("a slow run is given twenty of its steps", () => {
  const news = new News(), history = running(30);
  assert.deepEqual([0, 599, 600].map((now) => news.silence(history, "", now)), [null, null, 600]);
});

test("what fills the cache is news, and a run that has ended is not silent", () => {
  const news = new News(), history = running(0.5);
  assert.deepEqual([[0, ""], [200, "Caching 1 of 9"], [300, "Caching 2 of 9"], [310, ""], [400, ""]].map(([now, preparing]) => news.silence(history, preparing, now)), [null, null, null, null, null]);
  addRow(history, { kind: "finished", status: "finished", step: 5 });
  assert.equal(history.status, "finished");
  assert.deepEqual([500, 5000].map((now) => news.silence(history, "", now)), [null, null]);
});
