import assert from "node:assert/strict";
import test from "node:test";

import { ReviewStore } from "../../js/review_store.mjs";
import { speak } from "../../js/words.mjs";

/** A folder's captions behind the addresses of the server: it refuses a text that was written over another one. */
class Folder {
  constructor(captions) {
    this.captions = new Map(Object.entries(captions));
    this.asked = [];
    this.isDown = false;
    this.gates = [];
  }

  pictures() {
    return [...this.captions].map(([name, caption]) => ({ name, caption }));
  }

  url = (path) => `/api${path}`;

  getJson = async (path) => {
    this.asked.push(path.split("?")[0]);
    const pictures = this.pictures();
    if (this.gates.length) await this.gates.shift();
    return { pictures, undo: "", redo: "", notes: [] };
  };

  postJson = async (path, { name, text, seen }) => {
    this.asked.push(`${path} ${name ?? ""}`.trim());
    if (this.isDown) throw new TypeError("Failed to fetch");
    if (path.endsWith("/caption")) {
      if (this.captions.get(name) !== seen) return { status: 409, body: { error: "It was changed.", now: this.captions.get(name) } };
      this.captions.set(name, text.trim());
    }
    return { status: 200, body: { pictures: this.pictures(), undo: `the caption of ${name}`, redo: "", words: "" } };
  };
}

async function opened(captions) {
  const folder = new Folder(captions);
  const store = new ReviewStore({ folder: "my character" }, folder);
  const told = [];
  store.addEventListener("change", ({ detail }) => detail.words && told.push(detail));
  await store.load();
  return { folder, store, told };
}

test("a caption is saved over the text that was seen", async () => {
  const { folder, store, told } = await opened({ "a.png": "old" });
  await store.saveCaption("a.png", "new", "old");
  assert.equal(folder.captions.get("a.png"), "new");
  assert.deepEqual([store.pictures[0].caption, store.unsaved.size, store.undoWords], ["new", 0, "the caption of a.png"]);
  assert.deepEqual(told, [{ words: "a.png: caption saved.", isError: false }]);
});

test("what something else wrote meanwhile is not overwritten until the person says so", async () => {
  const { folder, store } = await opened({ "a.png": "old" });
  folder.captions.set("a.png", "theirs");
  await store.saveCaption("a.png", "mine", "old");
  assert.equal(folder.captions.get("a.png"), "theirs");
  assert.deepEqual(store.conflicts, [{ name: "a.png", mine: "mine", theirs: "theirs" }]);
  await store.settle(store.conflicts[0], "both");
  assert.deepEqual([folder.captions.get("a.png"), store.conflicts, store.unsaved.size], ["both", [], 0]);
});

test("the file's text is kept where the person chooses it", async () => {
  const { folder, store } = await opened({ "a.png": "old" });
  folder.captions.set("a.png", "theirs");
  await store.saveCaption("a.png", "mine", "old");
  await store.settle(store.conflicts[0], null);
  assert.deepEqual([folder.captions.get("a.png"), store.pictures[0].caption, store.pictures[0].unsaved], ["theirs", "theirs", undefined]);
});

test("a text outlives a server that is away, a reload of the list, and is saved at the next try", async () => {
  const { folder, store, told } = await opened({ "a.png": "old", "b.png": "other" });
  folder.isDown = true;
  await store.saveCaption("a.png", "new", "old");
  assert.deepEqual(told, [{ words: "Not saved: ComfyUI can't be reached (Failed to fetch).", isError: true }]);
  await store.load();
  assert.deepEqual([store.pictures[0].unsaved, store.pictures[0].caption], ["new", "old"]);
  folder.isDown = false;
  await store.saveAgain();
  assert.deepEqual([folder.captions.get("a.png"), store.unsaved.size, store.pictures[0].unsaved], ["new", 0, undefined]);
});

test("an unsaved text, and an edit of it, never replace what was written since it was made", async () => {
  for (const again of [(store) => store.saveAgain(), (store) => store.saveCaption("a.png", "edited again", "theirs")]) {
    const { folder, store } = await opened({ "a.png": "old" });
    folder.isDown = true;
    await store.saveCaption("a.png", "mine", "old");
    folder.isDown = false;
    folder.captions.set("a.png", "theirs");
    await store.load();
    await again(store);
    assert.deepEqual([folder.captions.get("a.png"), store.conflicts.length, store.conflicts[0]?.theirs], ["theirs", 1, "theirs"]);
    await store.settle(store.conflicts[0], "settled");
    assert.deepEqual([folder.captions.get("a.png"), store.unsaved.size], ["settled", 0]);
  }
});

test("a text waits for another try whatever else succeeds, and no longer where the person must choose", async () => {
  const { folder, store } = await opened({ "a.png": "old", "b.png": "other" });
  folder.isDown = true;
  await store.saveCaption("a.png", "mine", "old");
  await store.saveAgain(); // fails again, and is told like the first time
  folder.isDown = false;
  await store.mark(["b.png"], "excluded", true, "b.png: excluded.");
  await store.saveCaption("b.png", "another", "other");
  assert.deepEqual([store.hasFailed, store.pictures[0].unsaved], [true, "mine"]);
  folder.captions.set("a.png", "theirs");
  await store.saveAgain();
  assert.deepEqual([store.hasFailed, store.conflicts.length], [false, 1]);
});

test("changes are asked one after the other, in the order of the person's", async () => {
  const { folder, store } = await opened({ "a.png": "0" });
  await Promise.all([store.saveCaption("a.png", "1", "0"), store.saveCaption("a.png", "2 ", "0"), store.saveCaption("a.png", "3", "0"), store.mark(["a.png"], "excluded", true, "")]);
  assert.deepEqual([folder.captions.get("a.png"), store.conflicts, store.unsaved.size], ["3", [], 0]);
  assert.deepEqual(folder.asked.slice(1), [...Array(2).fill("/pistachio/review/caption a.png"), "/pistachio/review/caption a.png", "/pistachio/review/mark"]);
});

test("an answer that is older than a change is asked for again", async () => {
  const { folder, store } = await opened({ "a.png": "old" });
  let open = () => {};
  folder.gates = [new Promise((resolve) => (open = resolve))];
  const loaded = store.load(); // reads the folder now, answers later
  await store.saveCaption("a.png", "new", "old");
  open();
  await loaded;
  assert.equal(store.pictures[0].caption, "new");
});

test("what did not change stays the same object, so that nothing is drawn anew", async () => {
  const { folder, store } = await opened({ "a.png": "one", "b.png": "two" });
  const [first, second] = store.pictures;
  folder.captions.set("b.png", "three");
  await store.load();
  assert.equal(store.pictures[0], first);
  assert.notEqual(store.pictures[1], second);
});

test("addresses name the folder and the file as they are", () => {
  const store = new ReviewStore({ folder: "a & b" }, new Folder({}));
  assert.equal(store.thumbnail({ name: "c d.png", caption: null, version: "7" }, 256), "/api/pistachio/thumbnail?folder=a%20%26%20b&file=c%20d.png&size=256&v=7");
});

test("what a check finds is said in the user's language; a finding without a code stays as it came", async () => {
  const { folder, store, told } = await opened({ "a.png": "one" });
  const own = { code: "odd", topic: "Oddness", severity: "note", words: "It is odd.", advice: "Look at it.", pictures: ["a.png"] };
  const small = {
    code: "small", severity: "note", pictures: ["a.png"], topic: "Size", topic_message: { code: "topic.size", values: {} }, advice: "…",
    advice_message: { code: "check.small.advice", values: {} }, words: "…", words_message: { code: "check.small", values: { count: "1", resolution: "1024", names: "a.png" } },
  };
  folder.getJson = async () => ({ state: "done", verdict: "Ready to train", verdict_message: { code: "check.ready", values: {} }, findings: [own, small] });
  await speak("zh");
  try {
    await store.check({}, true);
  } finally {
    await speak("en");
  }
  assert.deepEqual(store.findings[0], own);
  assert.deepEqual(store.findings[1], { code: "small", severity: "note", pictures: ["a.png"], topic: "尺寸", words: "1 张图片小于训练尺寸 1024 x 1024：a.png。", advice: "它们会按自身尺寸训练。更大的原图有更多细节。" });
  assert.equal(told.at(-1).words, "可以训练。筛选列表中会显示所发现的问题。");
});
