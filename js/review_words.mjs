// @ts-check
/**
 * What the server says of a review in English phrases that it always says alike, in the user's language.
 * A phrase that is not known here stays as it is; its sentences come with their codes, for `translated`.
 */

import { say } from "./words.mjs";

/** How a change begins; the names of its files follow. */
const CHANGES = /** @type {const} */ ([
  ["the caption of ", "review.change.caption"],
  ["accepting ", "review.change.accept"],
  ["excluding ", "review.change.exclude"],
  ["including ", "review.change.include"],
  ["holding out ", "review.change.hold"],
  ["not holding out ", "review.change.give_back"],
]);

/** @param {string} english for example "excluding a.png"; empty stays empty */
export function changeWords(english) {
  const found = CHANGES.find(([start]) => english.startsWith(start));
  return found ? say(found[1], { names: english.slice(found[0].length) }) : english;
}
