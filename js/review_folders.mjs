// @ts-check
/** One store a folder under review: all views of it show the same. */

import { getJson, postJson, url } from "./host.mjs";
import { ReviewStore } from "./review_store.mjs";

/** @type {Map<string, ReviewStore>} */
const stores = new Map();

/** @param {import("./review_store.mjs").Scope} scope @returns {ReviewStore} the folder's, made at the first call */
export function storeOf(scope) {
  const key = JSON.stringify([scope.folder.trim(), scope.recursive ?? true, scope.videos ?? false]);
  let store = stores.get(key);
  if (!store) {
    store = new ReviewStore({ ...scope, folder: scope.folder.trim() }, { getJson, postJson, url });
    stores.set(key, store);
    store.load();
    store.check({}, false); // what is known already
  }
  return store;
}

/** Whether a text of any folder is not on the disk yet. */
export const hasUnsaved = () => [...stores.values()].some((store) => store.unsaved.size > 0);
