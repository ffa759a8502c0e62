// @ts-check
/** Which folder a node's pictures come from, as far as the canvas knows it before a run. Knows no page and no server. */

/**
 * @typedef {import("./host.mjs").CanvasNode} CanvasNode
 * @typedef {import("./review_store.mjs").Scope} Scope
 */

/**
 * @param {CanvasNode | null} node @param {Set<CanvasNode>} [seen]
 * @returns {Scope | null} of the nearest node that names a folder; null too where that folder is given to it: only a run tells which
 */
export function folderOf(node, seen = new Set()) {
  if (!node || seen.has(node)) return null;
  seen.add(node);
  const links = (node.inputs ?? []).flatMap(({ name, link }, slot) => (link == null ? [] : [{ name, slot }]));
  if (links.some(({ name }) => name === "folder")) return null; // by a node, or by the subgraph that it stands in: its own widget is not what runs
  const value = (/** @type {string} */ name) => node.widgets?.find((widget) => widget.name === name)?.value;
  const folder = value("folder");
  if (typeof folder === "string" && folder.trim()) {
    return { folder, recursive: value("recursive") !== false, videos: node.type === "PistachioLoadVideoFolder" };
  }
  for (const { slot } of links) {
    const found = folderOf(node.getInputNode(slot), seen);
    if (found) return found;
  }
  return null;
}
