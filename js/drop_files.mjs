// @ts-check
/** The files of a drop or of a file dialog, folders read to their end or to the most that is taken. Knows nothing of where they go. */

/**
 * @typedef {import("./drop_plan.mjs").Dropped & {file: File}} DroppedFile
 * @typedef {{files: DroppedFile[], cut: string}} Given cut: what was dropped that had too many files, and was not read to its end; else ""
 */

export const MOST_FILES = 20_000;

/** @param {DragEvent} event */
export function hasFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/**
 * Must be called while the event is handled: the list of what was dropped is empty after that.
 * @param {DataTransfer} transfer @returns {Promise<Given>}
 */
export function droppedFiles(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const parts = items.map((item) => ({ entry: item.webkitGetAsEntry?.() ?? null, file: item.getAsFile() }));
  return (async () => {
    /** @type {Given} */
    const given = { files: [], cut: "" };
    for (const { entry, file } of parts) {
      if (entry && !(await read(entry, given.files))) given.cut ||= entry.name;
      else if (!entry && file) given.files.push({ path: file.name, size: file.size, file });
    }
    return given;
  })();
}

/** @param {HTMLInputElement} input of files, or of a folder @returns {Given} */
export function chosenFiles(input) {
  return { files: [...(input.files ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, size: file.size, file })), cut: "" };
}

/** @param {FileSystemEntry} entry @param {DroppedFile[]} found @returns {Promise<boolean>} whether it was read to its end */
async function read(entry, found) {
  if (entry.isFile && found.length >= MOST_FILES) return false;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
    found.push({ path: entry.fullPath.replace(/^\//, ""), size: file.size, file });
    return true;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) {
    /** @type {FileSystemEntry[]} a hundred at a time */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return true;
    for (const each of some) if (!(await read(each, found))) return false;
  }
}
