// @ts-check
/**
 * What is done with dropped files: which go together, where they go, what is left out and why. Plain data: knows no page and no server.
 * A sidecar is a caption or mask of a picture: it follows the name that its picture gets.
 */

import { say, sayCounted } from "./words.mjs";

const PICTURE = /\.(jpe?g|jfif|png|bmp|gif|tiff?|webp|avif)$/i;
const VIDEO = /\.(mp4|m4v|mov|webm|mkv|avi)$/i;
const UNREADABLE = /\.(heic|heif|jxl|psd|svg|raw|dng|cr2|nef|arw)$/i;
const ARCHIVE = /\.(zip|rar|7z|tar|t?gz)$/i;
const NOT_FOR_PEOPLE = /^(\..*|thumbs\.db|desktop\.ini|__MACOSX)$/i;
const TABLE = "captions.json";
const NEW_SETS = "pistachio"; // the folder in input/ that dropped folders go into

/**
 * @typedef {{path: string, size: number}} Dropped path: below what was dropped, with /
 * @typedef {{picture: Dropped, sidecars: Dropped[]}} Group
 * @typedef {{path: string, reason: string}} Refused
 * @typedef {object} Plan
 * @property {string} top name of the one folder that was dropped, or ""
 * @property {Group[]} groups
 * @property {Dropped[]} loose captions without their picture: it may be there already
 * @property {Dropped | null} table captions.json
 * @property {Refused[]} refused
 *
 * @typedef {object} Place the answer of GET /pistachio/folder
 * @property {string} folder
 * @property {boolean} exists
 * @property {boolean} takes_files
 * @property {string} [problem]
 * @property {number} max_bytes
 * @property {number} [num_pictures]
 * @property {number} [num_captioned]
 * @property {number} [num_videos]
 * @property {boolean} [is_cut]
 * @property {{file: string, v: string}[]} [first]
 */

/** @template {Dropped} T @param {T[]} files @param {{videos: boolean, maxBytes: number}} takes @returns {Plan & {groups: {picture: T, sidecars: T[]}[], loose: T[], table: T | null}} */
export function planOf(files, { videos, maxBytes }) {
  const top = commonFolder(files);
  const known = files
    .map((file) => ({ ...file, path: top ? file.path.slice(top.length + 1) : file.path }))
    .filter(({ path }) => !path.split("/").some((part) => NOT_FOR_PEOPLE.test(part)));
  const isPicture = (/** @type {string} */ path) => PICTURE.test(path) || (videos && VIDEO.test(path));
  const stems = new Set(known.filter(({ path }) => isPicture(path)).map(({ path }) => stemOf(path)));
  /** @type {Map<string, T[]>} */
  const sidecars = new Map();
  /** @type {T[]} */
  const pictures = [], loose = [];
  /** @type {T | null} */
  let table = null;
  /** @type {Refused[]} */
  const refused = [];
  for (const file of known) {
    const owner = ownerOf(file.path, stems);
    const reason = owner === null ? reasonAgainst(file, videos, maxBytes) : "";
    if (reason) refused.push({ path: file.path, reason });
    else if (owner) sidecars.set(owner, [...(sidecars.get(owner) ?? []), file]);
    else if (isPicture(file.path)) pictures.push(file);
    else if (file.path.toLowerCase() === TABLE) table = file;
    else if (/\.txt$/i.test(file.path)) loose.push(file);
    else refused.push({ path: file.path, reason: say("drop.reason.other") });
  }
  const groups = pictures.map((picture) => ({ picture, sidecars: [...(sidecars.get(stemOf(picture.path)) ?? [])] }));
  return { top, groups, loose, table, refused };
}

/** @param {Dropped} file @param {boolean} videos @param {number} maxBytes */
function reasonAgainst({ path, size }, videos, maxBytes) {
  if (VIDEO.test(path) && !videos) return say("drop.reason.video");
  if (UNREADABLE.test(path)) return say("drop.reason.unreadable", { kind: path.slice(path.lastIndexOf(".") + 1).toUpperCase() });
  if (ARCHIVE.test(path)) return say("drop.reason.archive");
  if (size > maxBytes) return say("drop.reason.large", { megabytes: Math.round(maxBytes / 1e6) });
  return "";
}

/** The stem (with its folder) of the picture that a file belongs to; null where it belongs to none. @param {string} path @param {Set<string>} stems */
function ownerOf(path, stems) {
  const stem = stemOf(path);
  if (/\.txt$/i.test(path)) {
    if (stems.has(stem)) return stem;
    const numbered = stem.replace(/\.\d+$/, "");
    return numbered !== stem && stems.has(numbered) ? numbered : null;
  }
  if (!PICTURE.test(path)) return null;
  const masked = stem.replace(/\.mask$/, "");
  if (masked !== stem && stems.has(masked)) return masked;
  const parted = /^(.*\/)?masks\/([^/]+)$/.exec(stem);
  const above = parted ? `${parted[1] ?? ""}${parted[2]}` : stem;
  return parted && stems.has(above) ? above : null;
}

/** Where a sidecar goes when its picture was given another name. @param {string} sidecar @param {string} from the picture's path @param {string} to */
export function following(sidecar, from, to) {
  const [before, after] = [baseOf(stemOf(from)), baseOf(stemOf(to))];
  const slash = sidecar.lastIndexOf("/") + 1;
  const name = sidecar.slice(slash);
  return before === after || !name.startsWith(`${before}.`) ? sidecar : sidecar.slice(0, slash) + after + name.slice(before.length);
}

/**
 * Where the files go. With `fresh` the person is asked: into the folder on the node (null: it takes none), or into a new one.
 * @param {Place} place the folder on the node @param {string} top @returns {{into: string, fresh: null} | {into: string | null, fresh: string}}
 */
export function targetOf(place, top) {
  const own = safeName(baseOf(place.folder.replace(/\/+$/, "")));
  if (!top && place.takes_files) return { into: place.folder, fresh: null };
  const fresh = `${NEW_SETS}/${(top ? safeName(top) : own) || "pictures"}`;
  const isFilled = place.exists && (place.num_pictures ?? 0) + (place.num_videos ?? 0) > 0;
  if (!isFilled) return { into: fresh, fresh: null };
  if (!place.takes_files) return { into: null, fresh }; // never another set in place of the one on the node, unasked
  return own === safeName(top) ? { into: place.folder, fresh: null } : { into: place.folder, fresh };
}

/** A folder's name on every system. @param {string} name */
export function safeName(name) {
  return name.normalize("NFC").replace(/[<>:"|?*\\/\u0000-\u001f]/g, "_").replace(/^\.+/, "").replace(/[. ]+$/, "").trim().slice(0, 60);
}

/** @typedef {{added: number, captions: number, same: number, renamed: number, kept: number, refused: Refused[], unsent: number}} Outcome */

/** In a sentence. @param {Outcome} outcome @param {string} folder */
export function outcomeWords({ added, captions, same, renamed, kept, refused, unsent }, folder) {
  const parts = [added || captions || !same ? sayCounted("drop.added", added, { folder }) : ""];
  if (captions) parts.push(sayCounted("drop.captions", captions));
  if (same) parts.push(sayCounted("drop.same", same));
  if (renamed) parts.push(sayCounted("drop.renamed", renamed));
  if (kept) parts.push(sayCounted("drop.kept", kept));
  if (refused.length) parts.push(sayCounted("drop.refused", refused.length));
  if (unsent) parts.push(sayCounted("drop.unsent", unsent));
  return parts.filter(Boolean).join(" ");
}

/** @param {Dropped[]} files */
function commonFolder(files) {
  const slash = files[0]?.path.indexOf("/") ?? -1;
  if (slash < 0) return "";
  const first = files[0].path.slice(0, slash + 1);
  return files.every(({ path }) => path.startsWith(first)) ? first.slice(0, -1) : "";
}

/** Without its ending, with its folder. @param {string} path */
function stemOf(path) {
  const dot = path.lastIndexOf(".");
  return dot > path.lastIndexOf("/") + 1 ? path.slice(0, dot) : path;
}

/** @param {string} path */
const baseOf = (path) => path.slice(path.lastIndexOf("/") + 1);
