import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { frameOf, stepAt } from "../../js/chart.mjs";
import { addRow, duration, emptyHistory, signed, speed } from "../../js/history.mjs";
import { speak } from "../../js/words.mjs";

const WIDTH = 600, HEIGHT = 300;

afterEach(() => speak("en"));

function measured(...points) {
  const history = emptyHistory("a");
  history.numSteps = 400;
  for (const [step, percent, se = 0.02] of points) addRow(history, { kind: "eval", step, loss: 2 + percent / 50, loss_delta: percent / 50, loss_delta_pct: percent, se });
  return history;
}

test("every measured value with its error lies on the chart, and the base line with it", () => {
  for (const isLog of [false, true]) {
    for (const points of [[[0, 0], [200, -40]], [[0, 0], [200, 30, 0.4]], [[0, 0]], [[0, 0], [100, -95, 0.1]]]) {
      const history = measured(...points);
      const { y, bottom } = frameOf(history, { steps: null, isLog }, WIDTH, HEIGHT);
      for (const { percent, margin } of [...history.evaluations, { percent: 0, margin: 0 }]) {
        for (const value of [percent - margin, percent, percent + margin].filter((one) => one > -99.5)) {
          assert.ok(y(value) >= 0 && y(value) <= bottom + 1e-9, `${value} is at ${y(value)} of ${bottom}`);
        }
      }
    }
  }
});

test("on the log scale equal shares of the loss are equally high; on the other equal differences", () => {
  const history = measured([0, 0], [200, -80]);
  const log = frameOf(history, { steps: null, isLog: true }, WIDTH, HEIGHT).y;
  const linear = frameOf(history, { steps: null, isLog: false }, WIDTH, HEIGHT).y;
  assert.ok(Math.abs((log(-50) - log(0)) - (log(-75) - log(-50))) < 1e-9);
  assert.ok(Math.abs((linear(-40) - linear(0)) - (linear(-80) - linear(-40))) < 1e-9);
  for (const y of [log, linear]) assert.ok(y(-80) > y(-50) && y(-50) > y(0), "less loss is lower");
});

test("zoomed, the scale is that of what is seen, and what lies outside is cut at the edges", () => {
  const history = measured([0, 0], [100, -10], [200, -10.5], [400, 50]);
  const whole = frameOf(history, { steps: null, isLog: false }, WIDTH, HEIGHT);
  const part = frameOf(history, { steps: [90, 210], isLog: false }, WIDTH, HEIGHT);
  assert.ok(part.high < 0 && part.high - part.low < (whole.high - whole.low) / 5);
  assert.deepEqual([stepAt(part, -50), stepAt(part, WIDTH + 50)], [90, 210]);
});

test("a run with nothing measured yet has a chart of its steps", () => {
  const frame = frameOf(emptyHistory("a"), { steps: null, isLog: true }, WIDTH, HEIGHT);
  for (const value of [frame.x(0), frame.x(1), frame.y(0)]) assert.ok(Number.isFinite(value));
});

test("changes, speeds and times as people write them", async () => {
  assert.deepEqual([-14.2, -3.14159, 0.04, -0.04, 2, 120].map(signed), ["−14 %", "−3.1 %", "0.0 %", "0.0 %", "+2.0 %", "+120 %"]);
  assert.deepEqual([0.0083, 0.5, 3.14159, 250].map(speed), ["120 steps/s", "2 steps/s", "3.1 s a step", "250 s a step"]);
  assert.equal(speed(null), "");
  assert.deepEqual([-3, 59.4, 61, 3600, 3600 * 26 + 61].map(duration), ["0 s", "59 s", "1 min", "1 h 00 min", "26 h 01 min"]);
  await speak("zh");
  assert.match(speed(0.5), /^[^a-z]*2[^a-z]*$/i, "no English in a Chinese line");
});
