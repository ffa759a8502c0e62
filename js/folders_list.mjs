// @ts-check
/** What the folder dialog lists: filtering, words of a folder, where the keys lead. Plain data: knows no page and no server. */

import { say, sayCounted, sayNumber } from "./words.mjs";

/**
 * @typedef {object} Folder as GET /pistachio/folders tells it
 * @property {string} name
 * @property {string} folder what a node's widget takes
 * @property {number} [num_pictures]
 * @property {number} [num_captioned]
 * @property {number} [num_videos]
 * @property {number} [num_folders]
 * @property {{file: string, v: string}[]} [first]
 * @property {boolean} [is_cut]
 * @property {string} [problem]
 *
 * @typedef {object} Level
 * @property {string} at
 * @property {string} chosen
 * @property {{name: string, at: string}[]} trail
 * @property {Folder | null} itself
 * @property {Folder[]} folders
 */

/** @param {Folder[]} folders @param {string} filter words that must all be in the name @returns {Folder[]} */
export function filtered(folders, filter) {
  const words = filter.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  return words.length ? folders.filter(({ name }) => words.every((word) => name.toLocaleLowerCase().includes(word))) : folders;
}

/** What is in it. @param {Folder} folder */
export function contentWords({ num_pictures: pictures = 0, num_captioned: captioned = 0, num_videos: videos = 0, is_cut: isCut, problem }) {
  if (problem) return problem;
  if (!pictures && !videos) return say("folders.none");
  const parts = [];
  if (pictures) parts.push(isCut ? say("folders.pictures.more", { count: sayNumber(pictures) }) : sayCounted("folders.pictures", pictures));
  if (videos) parts.push(sayCounted("folders.videos", videos));
  const all = pictures + videos;
  parts.push(captioned === 0 ? say("folders.captioned.none") : captioned >= all ? say("folders.captioned.all") : say("folders.captioned", { count: captioned }));
  return parts.join(say("list.comma"));
}

/** Whether it is worth opening. @param {Folder} folder */
export const hasFolders = ({ num_folders: count = 0 }) => count > 0;

/**
 * Where a key leads in a list. @param {string} key @param {number} current @param {number} count @param {number} page rows @returns {number | null}
 */
export function moved(key, current, count, page) {
  if (!count) return null;
  const to = { ArrowDown: current + 1, ArrowUp: current - 1, Home: 0, End: count - 1, PageDown: current + page, PageUp: current - page }[key];
  return to === undefined ? null : Math.min(count - 1, Math.max(0, to));
}
