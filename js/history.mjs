// @ts-check
/**
 * A run as the panel draws it, built from the server's history or from live messages.
 * Plain data: knows no page and no server.
 */

const SPEED_SMOOTHING = 0.1; // share of the latest step
const MAX_POINTS = 800; // of the training loss; more are thinned to every second one

/**
 * @typedef {object} Evaluation
 * @property {number} step
 * @property {number} percent change of the held-out loss against the base
 * @property {number} margin standard error, in the same unit
 *
 * @typedef {object} Samples
 * @property {number} step
 * @property {{thumbnail: string, prompt: string, with_trigger: boolean}[]} pictures
 *
 * @typedef {object} History
 * @property {string} run
 * @property {string} status new, running, interrupted or finished
 * @property {number} step
 * @property {number} numSteps
 * @property {number | null} secondsLeft
 * @property {{step: number, loss: number}[]} training
 * @property {number} stride
 * @property {Evaluation[]} evaluations
 * @property {Samples | null} samples the latest
 * @property {string} note
 * @property {string} verdict
 * @property {number | null} chosenStep
 * @property {[number, number] | null} tied first and last step that are as good as the chosen one
 * @property {{step: number, percent: number}[]} trained change of the loss on training pictures, in the same unit
 * @property {number | null} secondsPerStep smoothed
 * @property {string} phase what it does now, where that is not training: evaluating, sampling
 */

/** @param {string} run @returns {History} */
export function emptyHistory(run) {
  return {
    run, status: "new", step: 0, numSteps: 0, secondsLeft: null, training: [], stride: 1, evaluations: [], samples: null, note: "",
    verdict: "", chosenStep: null, tied: null, trained: [], secondsPerStep: null, phase: "",
  };
}

/** @param {any} details the answer of GET /pistachio/runs/{name} @returns {History} */
export function fromServer(details) {
  const history = emptyHistory(details.name);
  history.numSteps = details.config?.settings?.num_steps ?? 0;
  for (const row of details.metrics ?? []) if (row.kind !== "sample") addRow(history, row);
  for (const entry of details.samples ?? []) addRow(history, { ...entry, kind: "sample" });
  history.status = details.status;
  history.chosenStep = details.status === "finished" ? details.chosen_step : null;
  history.verdict = details.status === "finished" ? details.verdict ?? "" : "";
  history.tied = details.status === "finished" ? details.report?.tied_range ?? null : null;
  return history;
}

/** @param {History} history @param {any} row of metrics.jsonl, or the data of a message with its kind */
export function addRow(history, row) {
  history.step = Math.max(history.step, row.step ?? 0);
  if (row.num_steps) history.numSteps = row.num_steps;
  if (history.status === "new") history.status = "running";
  if (row.kind === "phase") history.phase = row.phase ?? "";
  else if (row.kind === "train") addTraining(history, row);
  else if (row.kind === "eval") addEvaluation(history, row);
  else if (row.kind === "probe") addProbe(history, row);
  else if (row.kind === "sample") history.samples = { step: row.step, pictures: row.pictures ?? [] };
  else if (row.kind === "note") history.note = row.text ?? "";
  else if (row.kind === "finished") {
    history.status = "finished";
    history.secondsLeft = null;
    history.verdict = row.verdict ?? "";
    history.chosenStep = row.chosen_step ?? null;
    history.tied = row.tied_range ?? null;
    history.phase = "";
  }
}

/** @param {History} history @param {any} row */
function addTraining(history, row) {
  history.step = row.step;
  history.secondsLeft = row.seconds_left ?? null;
  history.phase = "";
  if (Number.isFinite(row.seconds)) {
    const before = history.secondsPerStep ?? row.seconds;
    history.secondsPerStep = before + SPEED_SMOOTHING * (row.seconds - before);
  }
  const loss = row.loss_ema ?? row.loss;
  const last = history.training.at(-1);
  if (!Number.isFinite(loss) || (last && row.step < last.step + history.stride)) return;
  history.training.push({ step: row.step, loss });
  if (history.training.length <= MAX_POINTS) return;
  history.training = history.training.filter((_, index) => index % 2 === 0);
  history.stride *= 2;
}

/** @param {History} history @param {any} row */
function addEvaluation(history, row) {
  if (!Number.isFinite(row.loss_delta_pct)) return;
  const base = row.loss - row.loss_delta;
  const evaluation = { step: row.step, percent: row.loss_delta_pct, margin: base > 0 && row.se ? (100 * row.se) / base : 0 };
  history.evaluations = [...history.evaluations.filter((other) => other.step !== row.step), evaluation].sort((a, b) => a.step - b.step);
}

/** @param {History} history @param {any} row */
function addProbe(history, row) {
  const first = row.train_loss - row.train_delta; // before any training
  if (!Number.isFinite(first) || first <= 0) return;
  history.trained = [...history.trained.filter(({ step }) => step !== row.step), { step: row.step, percent: (100 * row.train_delta) / first }]
    .sort((a, b) => a.step - b.step);
}

/** @param {number | null} secondsPerStep */
export function speed(secondsPerStep) {
  if (!secondsPerStep) return "";
  return secondsPerStep < 1 ? `${(1 / secondsPerStep).toPrecision(2)} steps/s` : `${secondsPerStep.toPrecision(2)} s a step`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** @param {number} percent */
export function signed(percent) {
  const text = Math.abs(percent) >= 10 ? Math.abs(percent).toFixed(0) : Math.abs(percent).toFixed(1);
  return `${Number(text) === 0 ? "" : percent < 0 ? "−" : "+"}${text} %`;
}
