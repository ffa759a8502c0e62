// @ts-check
/**
 * What the server says of a review in English phrases that it always says alike, in the user's language.
 * Its sentences stay as they are, and so does a phrase that is not known here.
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

/** @type {Map<string, import("./words.mjs").PlainKey>} */
const TOPICS = new Map([
  ["Caption lengths", "review.topic.lengths"],
  ["Captions", "review.topic.captions"],
  ["Compression", "review.topic.compression"],
  ["Different captions", "review.topic.different"],
  ["Disk", "review.topic.disk"],
  ["Duplicates", "review.topic.duplicates"],
  ["Framing", "review.topic.framing"],
  ["Memory", "review.topic.memory"],
  ["Number of pictures", "review.topic.number"],
  ["Readable", "review.topic.readable"],
  ["Shapes", "review.topic.shapes"],
  ["Sharpness", "review.topic.sharpness"],
  ["Size", "review.topic.size"],
  ["Steps", "review.topic.steps"],
  ["Trigger word", "review.topic.trigger"],
  ["Words beside the trigger", "review.topic.words"],
]);

/** @param {string} english for example "excluding a.png"; empty stays empty */
export function changeWords(english) {
  const found = CHANGES.find(([start]) => english.startsWith(start));
  return found ? say(found[1], { names: english.slice(found[0].length) }) : english;
}

/** @param {string} english of a finding */
export function topicWords(english) {
  const key = TOPICS.get(english);
  return key ? say(key) : english;
}
