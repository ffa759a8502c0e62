// @ts-check
/**
 * Which pictures of a review are shown, and where they lie in the grid. Pure: no DOM, no HTTP.
 */

import { say, sayCounted } from "./words.mjs";

/**
 * One picture as GET /pistachio/review gives it; what is empty or false is left out.
 * @typedef {object} Picture
 * @property {string} name relative path
 * @property {string | null} caption
 * @property {boolean} [is_cut]
 * @property {boolean} [is_from_table]
 * @property {boolean} [is_edited]
 * @property {boolean} [is_excluded]
 * @property {boolean} [is_held_out]
 * @property {string} [reason] to look at it
 * @property {string} [problem]
 * @property {string} [version]
 * @property {string} [unsaved] a text that could not be saved yet
 *
 * @typedef {{code: string, topic: string, severity: string, words: string, advice: string, pictures: string[]}} Finding
 */

/** @type {[key: string, words: import("./words.mjs").PlainKey, test: (picture: Picture) => boolean][]} */
export const FILTERS = [
  ["all", "review.filter.all", () => true],
  ["look", "review.filter.look", (picture) => Boolean(picture.reason)],
  ["empty", "review.filter.empty", (picture) => !picture.caption && !picture.unsaved],
  ["edited", "review.filter.edited", (picture) => Boolean(picture.is_edited)],
  ["held_out", "review.filter.held_out", (picture) => Boolean(picture.is_held_out)],
  ["excluded", "review.filter.excluded", (picture) => Boolean(picture.is_excluded)],
  ["unsaved", "review.filter.unsaved", (picture) => picture.unsaved !== undefined],
];
const FINDING = "finding:";

/** @param {Finding} finding @returns {string} its key as a filter */
export const findingKey = (finding) => `${FINDING}${finding.code}`;

/** @param {string} filter @param {Finding[]} findings @returns {(picture: Picture) => boolean} */
function tester(filter, findings) {
  if (!filter.startsWith(FINDING)) return (FILTERS.find(([key]) => key === filter) ?? FILTERS[0])[2];
  const names = new Set(findings.find((finding) => findingKey(finding) === filter)?.pictures);
  return (picture) => names.has(picture.name);
}

/** @param {Picture[]} pictures @param {{filter: string, query: string, findings: Finding[]}} asked every word of the query must be in it */
export function chosen(pictures, { filter, query, findings }) {
  const test = tester(filter, findings);
  const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  return pictures.filter((picture) => test(picture) && words.every((word) => searched(picture).includes(word)));
}

/** @type {WeakMap<Picture, string>} */
const texts = new WeakMap();

/** @param {Picture} picture */
function searched(picture) {
  let text = texts.get(picture);
  if (text === undefined) texts.set(picture, (text = `${picture.name}\n${picture.unsaved ?? picture.caption ?? ""}`.toLocaleLowerCase()));
  return text;
}

/** @param {Picture[]} pictures @param {Finding[]} findings @returns {{key: string, words: string, count: number, title: string}[]} filters that show something, and "all" */
export function filterChoices(pictures, findings) {
  const own = FILTERS.map(([key, words, test]) => ({ key, words: say(words), count: pictures.filter(test).length, title: "" }));
  const names = new Set(pictures.map(({ name }) => name));
  const found = findings.map((finding) => ({
    key: findingKey(finding), words: finding.topic, count: finding.pictures.filter((name) => names.has(name)).length,
    title: `${finding.words} ${finding.advice}`.trim(),
  }));
  return [...own, ...found].filter(({ key, count }) => key === "all" || count > 0);
}

/** @param {Picture[]} pictures @returns {string} "1000 pictures, 3 excluded, 5 held out" */
export function countWords(pictures) {
  const count = (/** @type {(picture: Picture) => unknown} */ test) => pictures.filter(test).length;
  const parts = [sayCounted("review.pictures", pictures.length)];
  const excluded = count((picture) => picture.is_excluded);
  const heldOut = count((picture) => picture.is_held_out && !picture.is_excluded);
  const waiting = count((picture) => picture.reason);
  if (waiting) parts.push(say("review.count.look", { count: waiting }));
  if (excluded) parts.push(say("review.count.excluded", { count: excluded }));
  if (heldOut) parts.push(say("review.count.held_out", { count: heldOut }));
  return parts.join(say("list.comma"));
}

// ---- the grid ------------------------------------------------------------------

export const GAP_PX = 8;
const WORDS_PX = 92; // caption and name below the picture

/** @param {number} widthPx of the grid without its padding @param {number} leastTilePx */
export function layout(widthPx, leastTilePx) {
  const columns = Math.max(1, Math.floor((widthPx + GAP_PX) / (leastTilePx + GAP_PX)));
  const tileWidthPx = Math.floor((widthPx - (columns - 1) * GAP_PX) / columns);
  const tileHeightPx = Math.round(tileWidthPx * 0.8) + WORDS_PX;
  return { columns, tileWidthPx, tileHeightPx, rowHeightPx: tileHeightPx + GAP_PX };
}

/** First and one past the last row to have in the DOM. @param {number} top of what is seen @param {number} height @param {number} rowHeightPx @param {number} count @param {number} spare rows before and after */
export function rowsInView(top, height, rowHeightPx, count, spare = 1) {
  const seen = Math.min(top, Math.max(0, count * rowHeightPx - height)); // a browser may take a list's new height late
  const first = Math.max(0, Math.floor(seen / rowHeightPx) - spare);
  return [Math.min(first, count), Math.min(count, Math.ceil((seen + height) / rowHeightPx) + spare)];
}

/** Where a key leads. @param {string} key @param {number} from @param {number} count of pictures @param {number} columns @param {number} rows on a page */
export function moved(key, from, count, columns, rows) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -columns * rows, PageDown: columns * rows };
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  const step = steps[/** @type {keyof typeof steps} */ (key)];
  if (step === undefined) return null;
  const to = from + step;
  if (key === "ArrowUp" || key === "ArrowDown") return to < 0 || to >= count ? (to >= count && Math.floor(from / columns) < Math.floor((count - 1) / columns) ? count - 1 : from) : to;
  return Math.max(0, Math.min(count - 1, to));
}

/** @type {[keys: string, words: import("./words.mjs").PlainKey][]} */
export const KEYS = [
  ["← → ↑ ↓", "review.keys.move"],
  ["Enter", "review.keys.edit"],
  ["Ctrl+Enter", "review.keys.save"],
  ["Esc", "review.keys.leave"],
  ["A", "review.keys.accept"],
  ["X", "review.keys.exclude"],
  ["H", "review.keys.hold"],
  ["Space", "review.keys.large"],
  ["/", "review.keys.search"],
  ["Ctrl+Z", "review.keys.undo"],
  ["?", "review.keys.keys"],
];
