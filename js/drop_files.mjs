// @ts-check
/** The files of a drop or of a file dialog, folders read to their end. Knows nothing of where they go. */

/** @typedef {import("./drop_plan.mjs").Dropped & {file: File}} DroppedFile */

const MOST_FILES = 20_000;

/** @param {DragEvent} event */
export function hasFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/**
 * Must be called while the event is handled: the list of what was dropped is empty after that.
 * @param {DataTransfer} transfer @returns {Promise<DroppedFile[]>}
 */
export function droppedFiles(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const parts = items.map((item) => ({ entry: item.webkitGetAsEntry?.() ?? null, file: item.getAsFile() }));
  return (async () => {
    /** @type {DroppedFile[]} */
    const found = [];
    for (const { entry, file } of parts) {
      if (entry) await read(entry, found);
      else if (file) found.push({ path: file.name, size: file.size, file });
    }
    return found;
  })();
}

/** @param {HTMLInputElement} input of files, or of a folder @returns {DroppedFile[]} */
export function chosenFiles(input) {
  return [...(input.files ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, size: file.size, file }));
}

/** @param {FileSystemEntry} entry @param {DroppedFile[]} found */
async function read(entry, found) {
  if (found.length >= MOST_FILES) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
    found.push({ path: entry.fullPath.replace(/^\//, ""), size: file.size, file });
    return;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) {
    /** @type {FileSystemEntry[]} a hundred at a time */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const each of some) await read(each, found);
  }
}
