// @ts-check
/**
 * What goes wrong, told where it is seen: an input to be changed and a node that stopped as a toast beside the host's own mark on the
 * node, and a server that does not answer in every part of the pack that waits for it, until it answers again.
 */

import { addStylesheet, element } from "./elements.mjs";
import { getJson, inputTip, nodeErrors, nodeOf, onMessage, toastInstead, untoast } from "./host.mjs";
import { inputWords, stopWords } from "./notices_words.mjs";
import { say, sayCounted } from "./words.mjs";

const OURS = /^Pistachio/;
const MOST_TOASTS = 3;
const TOAST_MS = 15_000;
const PROMPT_PATH = /\/prompt$/;
const LOOK_INTERVAL_MS = 150; // for the host to have read the answer
const MOST_LOOKS = 10;
const PLACES = ".pistachio-panel, .pistachio-runs, .pistachio-review, .pistachio-checkpoints, .pistachio-compare-steps, .pistachio-folders, .pistachio-folder:not(.button), .pistachio-captioner";
const PLACES_INTERVAL_MS = 400; // a tab may be opened meanwhile

addStylesheet("notices.css");

/** @typedef {import("./host.mjs").Toast} Toast */

// ---- inputs to be changed ------------------------------------------------------------

/** @type {Toast[]} of the last Run */
let told = [];

function clear() {
  told.forEach(untoast);
  told = [];
}

/** @param {string} summary @param {string} detail @param {Toast["severity"]} [severity] */
function tell(summary, detail, severity = "error") {
  told.push(toastInstead({ severity, summary, detail, life: TOAST_MS }));
}

function tellInputs() {
  const wrong = Object.entries(nodeErrors()).filter(([, { class_type: type, errors }]) => OURS.test(type) && errors?.length);
  for (const [id, { class_type: type, errors }] of wrong.slice(0, MOST_TOASTS)) {
    const node = nodeOf(id);
    const words = errors.map((error) => inputWords(error, inputTip(node, error.extra_info?.input_name ?? error.details)));
    tell(node?.title ?? type, [...new Set(words)].join("\n"));
  }
  if (wrong.length > MOST_TOASTS) tell(sayCounted("notices.more", wrong.length - MOST_TOASTS), "");
}

let lookTimer = 0;

// The older host says nothing of a refused Run to its extensions; that its request has ended the browser itself tells.
new PerformanceObserver((list) => {
  const asked = list.getEntries().filter(({ name }) => PROMPT_PATH.test(new URL(name).pathname));
  if (!asked.length) return;
  clear();
  clearTimeout(lookTimer); // of the Run before: what is wrong now would be told twice
  let looks = 0;
  const look = () => {
    if (Object.keys(nodeErrors()).length) tellInputs();
    else if (++looks < MOST_LOOKS) lookTimer = window.setTimeout(look, LOOK_INTERVAL_MS);
  };
  look();
}).observe({ type: "resource" });

// ---- nodes that stopped --------------------------------------------------------------

onMessage("execution_error", (data) => {
  if (!OURS.test(data.node_type ?? "")) return;
  tell(nodeOf(data.node_id)?.title ?? data.node_type, stopWords(data));
});

// ---- a server that does not answer -----------------------------------------------------

/** @type {string | null} the run that is being trained, as far as this page knows */
let training = null;
let placesTimer = 0;

for (const kind of ["step", "evaluation", "phase"]) {
  onMessage(`pistachio.${kind}`, ({ run }) => {
    training = run ?? training;
  });
}
for (const type of ["pistachio.finished", "execution_success", "execution_interrupted", "execution_error"]) {
  onMessage(type, () => {
    training = null;
  });
}

function showAway() {
  for (const place of document.querySelectorAll(PLACES)) {
    if (place.querySelector(":scope > .pistachio-away")) continue;
    const words = element("div", "pistachio-away", element("span", "dot"), say("notices.away"));
    words.setAttribute("role", "status");
    place.prepend(words);
  }
}

onMessage("reconnecting", () => {
  clearInterval(placesTimer);
  showAway();
  placesTimer = window.setInterval(showAway, PLACES_INTERVAL_MS);
});

onMessage("reconnected", async () => {
  clearInterval(placesTimer);
  placesTimer = 0;
  document.querySelectorAll(".pistachio-away").forEach((words) => words.remove());
  const run = training;
  if (!run) return;
  let details;
  try {
    details = await getJson(`/pistachio/runs/${encodeURIComponent(run)}`);
  } catch (error) {
    if (error instanceof TypeError) return; // gone again: the next time it is back it is asked anew
    throw error;
  }
  if (details?.status !== "interrupted" || training !== run) return; // it was the connection alone
  training = null;
  tell(say("notices.lost", { run }), say("notices.resume", { step: details.step ?? 0, total: details.num_steps ?? 0 }), "warn");
});
