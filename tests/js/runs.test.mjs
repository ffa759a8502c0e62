import assert from "node:assert/strict";
import test from "node:test";

import { candidatesOf, firstShown, wordsOf } from "../../js/candidates.mjs";
import { extent, path } from "../../js/lines.mjs";
import { base, change, found, size, status, when } from "../../js/runs_list.mjs";

const run = (values = {}) => ({
  name: "mia 1", status: "finished", family: "SDXL", base_file: "", trigger: "ohwx", num_pictures: 20, num_steps: 200, step: 200, chosen_step: 100, override_step: null,
  checkpoints: [100, 200], verdict: "Step 100 is best.", eval_delta_pct: -12.3, sparkline: [], modified: 0, size_bytes: 0, ...values,
});
const measured = (step, percent) => ({ kind: "eval", step, loss: 2 + percent / 50, loss_delta: percent / 50, loss_delta_pct: percent, se: 0.02 });
const picture = (step, prompt = "a portrait", seed = 0) => ({ thumbnail: `${step}.png`, prompt, with_trigger: true, seed });
const details = (values = {}) => ({
  name: "mia", status: "finished", chosen_step: 100, tied_range: [100, 150], checkpoints: [100, 150, 200], config: { settings: { num_steps: 200 } },
  metrics: [measured(0, 0), measured(100, -12), measured(150, -12.5), measured(200, -9)],
  samples: [0, 100, 150, 200].map((step) => ({ step, pictures: [picture(step)] })), ...values,
});

test("a search finds runs by every word, wherever it stands", () => {
  const runs = [run(), run({ name: "tom", trigger: "tmx", base_file: "juggernautXL.safetensors" }), run({ name: "ada", status: "running", step: 30 })];
  assert.deepEqual(found(runs, "").map(({ name }) => name), ["mia 1", "tom", "ada"]);
  assert.deepEqual(found(runs, "sdxl TMX").map(({ name }) => name), ["tom"]);
  assert.deepEqual(found(runs, "juggernaut").map(({ name }) => name), ["tom"]);
  assert.deepEqual(found(runs, "running").map(({ name }) => name), ["ada"]);
  assert.deepEqual(found(runs, "sdxl nobody"), []);
});

test("a run in words", () => {
  assert.equal(base(run()), "SDXL");
  assert.equal(base(run({ base_file: "juggernautXL_v9.safetensors" })), "juggernautXL_v9");
  assert.equal(change(run()), "−12 %");
  assert.equal(change(run({ eval_delta_pct: null })), "");
  assert.equal(status(run()), "");
  assert.equal(status(run({ status: "interrupted", step: 1500, num_steps: 3000 })), "interrupted at step 1500 of 3000");
  assert.deepEqual([0, 999, 1000, 28_900_000, 123_400_000_000].map(size), ["0 B", "999 B", "1.0 kB", "28.9 MB", "123 GB"]);
  const now = new Date(2026, 5, 10, 12);
  assert.equal(when(new Date(2026, 5, 9).getTime() / 1000, now), "Jun 9");
  assert.equal(when(new Date(2025, 5, 9).getTime() / 1000, now), "Jun 9, 2025");
  assert.match(when(new Date(2026, 5, 10, 9, 30).getTime() / 1000, now), /^09:30/);
});

test("the base line is within every extent, and a hundred thousand points are no trouble", () => {
  assert.deepEqual(extent([[0, 0], [100, -5]]), { low: -5, high: 0, last: 100 });
  assert.deepEqual(extent([[0, 3], [50, 4]]), { low: 0, high: 4, last: 50 });
  assert.deepEqual(extent([]), { low: 0, high: 1, last: 1 });
  assert.equal(extent(Array.from({ length: 200_000 }, (_, i) => [i, -i])).low, -199_999);
  assert.equal(path([[0, 0], [10, -5]], (step) => step, (percent) => -percent), "M0.0 0.0L10.0 5.0");
});

test("candidates are the steps with samples, with their loss and what is said of them", () => {
  const { candidates, rows } = candidatesOf(details());
  assert.deepEqual(candidates.map(({ step, mark, isKept }) => [step, mark, isKept]), [[0, "base", false], [100, "chosen", true], [150, "tied", true], [200, "", true]]);
  assert.equal(candidates[1].words, "Step 100 · held-out loss −12 % ± 1.0 · chosen");
  assert.equal(candidates[2].words, "Step 150 · held-out loss −13 % ± 1.0 · as good as the chosen one");
  assert.equal(candidates[0].words, "Step 0 · the base model");
  assert.equal(rows.length, 1);
  assert.equal(wordsOf(candidates[3], 200), "Step 200 · held-out loss −9.0 % ± 1.0 · your choice");
});

test("pictures stand beside others of the same prompt and seed alone", () => {
  const samples = [{ step: 0, pictures: [picture(0), picture(0, "a portrait", 1)] }, { step: 50, pictures: [picture(50, "a portrait", 1)] }];
  const { candidates, rows } = candidatesOf(details({ samples }));
  assert.deepEqual(rows.map(({ seed }) => seed), [0, 1]);
  assert.deepEqual(candidates[1].pictures.map((one) => one?.thumbnail ?? null), [null, "50.png"]);
  assert.equal(candidates[1].loss, "loss not measured");
  assert.equal(candidates[1].isKept, false);
});

test("the chosen step is shown first, or the nearest to it that has samples; never the base where there is another", () => {
  const first = (values, chosen) => {
    const { candidates, chosenStep } = candidatesOf(details(values));
    return candidates[firstShown(candidates, chosen === undefined ? chosenStep : chosen)].step;
  };
  assert.equal(first({}), 100);
  assert.equal(first({ chosen_step: 180 }), 200);
  assert.equal(first({ chosen_step: 10 }), 100);
  assert.equal(first({ status: "interrupted" }), 200);
  assert.equal(first({ samples: [{ step: 0, pictures: [picture(0)] }] }), 0);
});
