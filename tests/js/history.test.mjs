import assert from "node:assert/strict";
import test from "node:test";

import { frameOf, readout, stepAt, trainingPath } from "../../js/chart.mjs";
import { addRow, emptyHistory, fromServer, furtherSteps } from "../../js/history.mjs";
import { wordsOf } from "../../js/memory_line.mjs";
import { partnerOf, rowsOf } from "../../js/samples.mjs";
import { CAPACITY, Trace, traceOf } from "../../js/trace.mjs";

const loss = (step) => 1 + 0.1 * Math.sin(step);
const view = { steps: null, isLog: false };

function filled(count, stepFrom = 1) {
  const trace = new Trace();
  for (let step = stepFrom; step < stepFrom + count; step++) trace.add(step, loss(step));
  return trace;
}

function measured(step, percent) {
  return { kind: "eval", step, loss: 2 * (1 + percent / 100), loss_delta: (2 * percent) / 100, loss_delta_pct: percent, se: 0.02 };
}

test("a trace of few steps keeps each of them", () => {
  const trace = filled(1000);
  assert.equal(trace.count, 1000);
  assert.equal(trace.stride, 1);
  assert.ok(Math.abs(trace.at(500).value - loss(500)) < 1e-6);
});

test("a trace of many steps keeps every peak in as little room", () => {
  const trace = new Trace();
  for (let step = 1; step <= 100_000; step++) trace.add(step, step === 77_777 ? 9 : step === 3 ? -5 : 1);
  assert.ok(trace.count <= CAPACITY && trace.count > CAPACITY / 4, String(trace.count));
  assert.equal(trace.stride, 32);
  assert.equal(Math.max(...trace.highs.subarray(0, trace.count)), 9);
  assert.equal(Math.min(...trace.lows.subarray(0, trace.count)), -5);
  const near = trace.indexOf(77_777 - trace.stride);
  assert.ok([near, near + 1].some((i) => trace.highs[i] === 9), "the peak stays where it was");
});

test("what is added twice is there once, and steps trained anew replace the old ones", () => {
  const trace = filled(10);
  trace.add(10, 99);
  assert.equal(trace.count, 10);
  assert.ok(trace.highs[9] < 2);
  trace.add(5, 7);
  assert.deepEqual([trace.count, trace.last, trace.highs[4]], [5, 5, 7]);
});

test("numbers that are none are left out", () => {
  const trace = new Trace();
  trace.add(1, NaN);
  trace.add(2, 1);
  trace.add(3, Infinity);
  assert.equal(trace.count, 1);
  assert.equal(traceOf({ stride: 1, steps: [1, 2], low: [null, 2], high: [null, 2] }).count, 1);
});

test("two million steps do not grow the page's memory", () => {
  const history = emptyHistory("long");
  addRow(history, { kind: "train", step: 1, loss: 1, num_steps: 2_000_000 });
  const bytes = () => history.training.steps.byteLength + history.training.lows.byteLength + history.training.highs.byteLength;
  const before = bytes();
  globalThis.gc?.();
  const heap = process.memoryUsage().heapUsed;
  for (let first = 2; first <= 2_000_000; first += 50) {
    const rows = Array.from({ length: 50 }, (_, i) => [first + i, loss(first + i), 0.01]).filter(([step]) => step <= 2_000_000);
    addRow(history, { kind: "train", step: rows.at(-1)[0], rows, seconds_left: 1 });
    if ((first - 2) % 20_000 === 0) {
      addRow(history, measured(first, -10));
      addRow(history, { kind: "note", step: first, text: `Step ${first}` });
      addRow(history, { kind: "phase", step: first, phase: "evaluating" });
    }
  }
  assert.equal(history.step, 2_000_000);
  assert.equal(history.evaluations.length, 100);
  assert.equal(bytes(), before);
  assert.ok(history.training.count <= CAPACITY);
  assert.ok(JSON.stringify(history, (key, value) => (key === "training" ? undefined : value)).length < 10_000);
  globalThis.gc?.();
  const grown = process.memoryUsage().heapUsed - heap;
  assert.ok(grown < 32e6, `${(grown / 1e6).toFixed(1)} MB`); // what is to be collected included
});

test("a chart of 20,000 steps has no more points than twice its columns, and its peaks", () => {
  const history = emptyHistory("a");
  history.numSteps = 20_000;
  history.training = filled(20_000);
  const frame = frameOf(history, view, 640, 300);
  const drawn = trainingPath(history.training, frame);
  const points = drawn.match(/[ML]/g).length;
  assert.ok(points <= 2 * 640, String(points));
  const ys = drawn.slice(1).split(/[ML]/).map((point) => Number(point.split(" ")[1]));
  assert.deepEqual([Math.min(...ys), Math.max(...ys)], [18, 274]); // from one end of its room to the other
  const begun = performance.now();
  for (let i = 0; i < 100; i++) trainingPath(history.training, frame);
  assert.ok((performance.now() - begun) / 100 < 20, "a frame has 16 ms on an idle machine, and this is a small part of it");
});

test("a step and its place on the chart are each other's inverse, whole and zoomed", () => {
  const history = emptyHistory("a");
  history.numSteps = 400;
  addRow(history, measured(0, 0));
  addRow(history, measured(200, -10));
  for (const steps of [null, [100, 300]]) {
    const frame = frameOf(history, { steps, isLog: true }, 600, 300);
    assert.ok(Math.abs(stepAt(frame, frame.x(200)) - 200) < 1e-9);
    assert.ok(frame.low <= -10 && frame.y(frame.low) > frame.y(frame.high));
  }
});

test("the readout says what was measured, and the training loss where nothing was", () => {
  const history = emptyHistory("a");
  addRow(history, { kind: "train", step: 7, loss: 0.5, seconds: 1 });
  assert.equal(readout(history, 6).words, "step 6 · training loss 0.500");
  addRow(history, measured(0, 0));
  addRow(history, measured(8, -12));
  addRow(history, { kind: "probe", step: 8, train_loss: 0.8, train_delta: -0.2 });
  assert.equal(readout(history, 9).words, "step 8 · held out −12 % ± 1.0 · training pictures −20 % · gap 8.0 points · training loss 0.500");
  assert.equal(readout(emptyHistory("b"), 3), null);
});

test("the server's answer in few points and its rows one by one draw the same", () => {
  const rows = Array.from({ length: 50 }, (_, i) => ({ kind: "train", step: i + 1, loss: 9, loss_ema: loss(i + 1), seconds: 0.5 }));
  const evaluations = [measured(0, 0), measured(50, -3)];
  const one = fromServer({
    name: "a", status: "finished", chosen_step: 50, verdict: "Good.", tied_range: [50, 50], num_steps: 50, step: 50, seconds_per_step: 0.5, evaluations, probes: [], note: "",
    samples: [], memory: null, live: null, training: { stride: 1, steps: rows.map(({ step }) => step), low: rows.map((row) => row.loss_ema), high: rows.map((row) => row.loss_ema) },
  });
  const other = fromServer({
    name: "a", status: "finished", chosen_step: 50, verdict: "Good.", report: { tied_range: [50, 50] }, config: { settings: { num_steps: 50 } }, metrics: [...rows, ...evaluations], samples: [],
  });
  const frame = frameOf(one, view, 500, 200);
  assert.equal(trainingPath(one.training, frame), trainingPath(other.training, frameOf(other, view, 500, 200)));
  for (const key of ["status", "chosenStep", "verdict", "tied", "step", "numSteps", "evaluations"]) assert.deepEqual(one[key], other[key], key);
});

test("memory is news while it trains; at the end stays how far the plan was right", () => {
  const memory = { place: "card", used_bytes: 5e9, peak_bytes: 8.04e9, total_bytes: 24e9, planned_bytes: 8e9 };
  const history = emptyHistory("a");
  addRow(history, { kind: "train", step: 1, loss: 1, memory });
  assert.equal(wordsOf(history.memory), "5.0 GB now · peak 8.0 GB · planned 8.0 GB · card 24.0 GB");
  addRow(history, { kind: "finished", step: 1, memory });
  assert.equal(wordsOf(history.memory), "peak 8.0 GB · planned 8.0 GB");
  const rss = { place: "process", used_bytes: 512e6, peak_bytes: 600e6, total_bytes: 16e9, planned_bytes: null };
  assert.equal(wordsOf(rss), "ComfyUI's process 512 MB · peak 600 MB · RAM 16.0 GB");
  addRow(history, { kind: "finished", step: 1, memory: rss });
  assert.equal(history.memory, null);
});

test("samples are rows of one prompt and seed over the steps", () => {
  const picture = (prompt, step, seed = 0) => ({ thumbnail: `${prompt}-${step}`, prompt, with_trigger: true, seed });
  const { steps, rows } = rowsOf([
    { step: 0, pictures: [picture("a", 0), picture("b", 0, 1)] }, { step: 20, pictures: [picture("a", 20), picture("b", 20, 2)] }, { step: 40, pictures: [picture("a", 40)] },
  ]);
  assert.deepEqual(steps, [0, 20, 40]);
  assert.deepEqual(rows.map(({ prompt, seed, pictures }) => [prompt, seed, [...pictures.keys()]]), [["a", 0, [0, 20, 40]], ["b", 1, [0]], ["b", 2, [20]]]);
  assert.deepEqual([0, 20, 40].map((step) => partnerOf(rows[0], step)), [20, 0, 20]);
  assert.equal(partnerOf(rows[1], 0), 0, "a picture that is alone is held against itself");
});

test("what a run on all pictures is, an event and the server's answer both say", () => {
  const live = emptyHistory("a-all");
  addRow(live, { kind: "finished", step: 30, num_steps: 100, is_refit: true });
  assert.ok(live.isRefit && fromServer({ name: "a-all", status: "finished", is_refit: true }).isRefit);
  assert.ok(!fromServer({ name: "a", status: "finished" }).isRefit);
});

test("a run that was stopped goes on to its planned end, another one by half", () => {
  assert.deepEqual(furtherSteps({ step: 400, numSteps: 2000 }), { isPlanned: true, steps: 2000 });
  assert.deepEqual(furtherSteps({ step: 2000, numSteps: 2000 }), { isPlanned: false, steps: 3000 });
  assert.deepEqual(furtherSteps({ step: 25, numSteps: 25 }), { isPlanned: false, steps: 38 });
});
