import assert from "node:assert/strict";
import test from "node:test";

import { droppedFiles, MOST_FILES } from "../../js/drop_files.mjs";
import { following, outcomeWords, planOf, safeName, targetOf } from "../../js/drop_plan.mjs";
import { contentWords, filtered, moved } from "../../js/folders_list.mjs";
import { brief, inputWords, stopWords } from "../../js/notices_words.mjs";

const files = (...paths) => paths.map((path) => ({ path, size: 10 }));
const plan = (...paths) => planOf(files(...paths), { videos: false, maxBytes: 1000 });
const groupsOf = ({ groups }) => Object.fromEntries(groups.map(({ picture, sidecars }) => [picture.path, sidecars.map(({ path }) => path)]));

test("captions and masks go with their picture", () => {
  const made = plan("a.png", "a.txt", "a.2.txt", "a.mask.png", "masks/a.png", "b.jpg", "alone.txt", "captions.json", "v1.2.png", "v1.2.txt");
  assert.deepEqual(groupsOf(made), { "a.png": ["a.txt", "a.2.txt", "a.mask.png", "masks/a.png"], "b.jpg": [], "v1.2.png": ["v1.2.txt"] });
  assert.deepEqual(made.loose.map(({ path }) => path), ["alone.txt"]);
  assert.equal(made.table.path, "captions.json");
  assert.equal(made.top, "");
});

test("two pictures of one name have the caption both, and one that is sent is not taken from the other", () => {
  const made = plan("a.png", "a.jpg", "a.txt");
  assert.deepEqual(groupsOf(made), { "a.png": ["a.txt"], "a.jpg": ["a.txt"] });
  made.groups[0].sidecars.shift();
  assert.deepEqual(groupsOf(made), { "a.png": [], "a.jpg": ["a.txt"] });
});

test("a folder with more files than are taken is told, others are read to their end", async () => {
  const file = (path) => ({ isFile: true, name: path, fullPath: `/${path}`, file: (done) => done({ size: 1 }) });
  const folder = (name, count) => {
    const entries = [...Array.from({ length: count }, (_, index) => file(`${name}/${index}.png`)), { name: "empty", createReader: () => ({ readEntries: (done) => done([]) }) }];
    return { isFile: false, name, createReader: () => ({ readEntries: (done) => done(entries.splice(0, 100)) }) };
  };
  const drop = (...entries) => droppedFiles({ items: entries.map((entry) => ({ kind: "file", webkitGetAsEntry: () => entry, getAsFile: () => null })) });
  const whole = await drop(folder("anna", MOST_FILES - 3), folder("bob", 3));
  assert.deepEqual([whole.files.length, whole.cut], [MOST_FILES, ""]);
  const many = await drop(folder("anna", MOST_FILES - 3), folder("bob", 4));
  assert.deepEqual([many.files.length, many.cut, many.files.at(-1).path], [MOST_FILES, "bob", "bob/2.png"]);
});

test("one dropped folder gives its name, and its parts keep theirs", () => {
  const made = plan("anna/a.png", "anna/sub/b.png", "anna/sub/masks/b.png", "anna/.DS_Store", "anna/Thumbs.db", "anna/__MACOSX/a.png");
  assert.equal(made.top, "anna");
  assert.deepEqual(groupsOf(made), { "a.png": [], "sub/b.png": ["sub/masks/b.png"] });
  assert.deepEqual(made.refused, []);
  assert.equal(plan("anna/a.png", "bob/a.png").top, "");
  assert.equal(plan("anna/a.png", "b.png").top, "");
});

test("what a dataset can't use is refused with the reason", () => {
  const made = planOf([...files("a.heic", "a.zip", "a.mp4", "a.safetensors"), { path: "large.png", size: 5000 }], { videos: false, maxBytes: 1000 });
  assert.deepEqual(made.groups, []);
  assert.deepEqual(made.refused.map(({ path, reason }) => [path, reason.split(" ").at(-1)]), [
    ["a.heic", "JPEG"], ["a.zip", "folder"], ["a.mp4", "Folder"], ["a.safetensors", "caption"], ["large.png", "yourself"],
  ]);
  assert.deepEqual(groupsOf(planOf(files("a.mp4", "a.txt"), { videos: true, maxBytes: 1000 })), { "a.mp4": ["a.txt"] });
});

test("a sidecar follows its picture's new name", () => {
  assert.equal(following("sub/a.txt", "sub/a.png", "sub/a-2.png"), "sub/a-2.txt");
  assert.equal(following("a.2.txt", "a.png", "a-3.png"), "a-3.2.txt");
  assert.equal(following("masks/a.png", "a.jpg", "a-2.jpg"), "masks/a-2.png");
  assert.equal(following("a.txt", "a.png", "a.png"), "a.txt");
});

test("where dropped files go", () => {
  const place = (values) => ({ folder: "anna", exists: true, takes_files: true, max_bytes: 1, num_pictures: 3, ...values });
  assert.deepEqual(targetOf(place({}), ""), { into: "anna", fresh: null });
  assert.deepEqual(targetOf(place({ exists: false }), ""), { into: "anna", fresh: null });
  assert.deepEqual(targetOf(place({ folder: "output/anna", takes_files: false }), ""), { into: null, fresh: "pistachio/anna" });
  assert.deepEqual(targetOf(place({ folder: "anna", takes_files: false }), "anna"), { into: null, fresh: "pistachio/anna" });
  assert.deepEqual(targetOf(place({ folder: "output/anna", takes_files: false, num_pictures: 0 }), ""), { into: "pistachio/anna", fresh: null });
  assert.deepEqual(targetOf(place({ folder: "", takes_files: false, exists: false }), ""), { into: "pistachio/pictures", fresh: null });
  assert.deepEqual(targetOf(place({ num_pictures: 0 }), "bob"), { into: "pistachio/bob", fresh: null });
  assert.deepEqual(targetOf(place({}), "bob"), { into: "anna", fresh: "pistachio/bob" });
  assert.deepEqual(targetOf(place({ folder: "sets/anna" }), "anna"), { into: "sets/anna", fresh: null });
  assert.deepEqual(targetOf(place({ folder: "/mnt/x", takes_files: false, exists: false }), "../.bob: 2?"), { into: `pistachio/${safeName("../.bob: 2?")}`, fresh: null });
  assert.doesNotMatch(safeName("../.bob: 2?"), /[/\\:?]|^\./);
});

test("the outcome in a sentence", () => {
  const none = { added: 0, captions: 0, same: 0, renamed: 0, kept: 0, refused: [], unsent: 0 };
  assert.equal(outcomeWords({ ...none, added: 2, captions: 1 }, "anna"), "2 added to anna. 1 caption with them.");
  assert.equal(outcomeWords({ ...none, same: 2 }, "anna"), "2 were there already.");
  assert.match(outcomeWords({ ...none, refused: [{ path: "a", reason: "b" }], unsent: 3 }, "anna"), /1 was refused\. 3 were not sent\.$/);
});

test("folders are filtered by every word, and told by what is in them", () => {
  const folders = ["anna summer", "Anna winter", "bob"].map((name) => ({ name, folder: name }));
  assert.deepEqual(filtered(folders, " WINTER anna").map(({ name }) => name), ["Anna winter"]);
  assert.equal(filtered(folders, " ").length, 3);
  assert.equal(contentWords({ name: "", folder: "", num_pictures: 20, num_captioned: 18 }), "20 pictures, 18 with a caption");
  assert.equal(contentWords({ name: "", folder: "", num_pictures: 1, num_videos: 2, num_captioned: 3 }), "1 picture, 2 videos, all with a caption");
  assert.equal(contentWords({ name: "", folder: "", num_pictures: 60000, is_cut: true }), "more than 60,000 pictures, no captions");
  assert.equal(contentWords({ name: "", folder: "" }), "no pictures");
});

test("keys move within the list", () => {
  assert.deepEqual(["ArrowDown", "ArrowUp", "End", "PageDown", "x"].map((key) => moved(key, 0, 20, 8)), [1, 0, 19, 8, null]);
  assert.equal(moved("ArrowDown", 0, 0, 8), null);
});

test("an input's error says what to change", () => {
  const own = { type: "custom_validation_failed", message: "Custom validation failed for node", details: "folder - The folder 'x' does not exist. Correct it.", extra_info: { input_name: "folder" } };
  assert.equal(inputWords(own), "The folder 'x' does not exist. Correct it.");
  assert.equal(inputWords({ type: "required_input_missing", message: "", details: "dataset", extra_info: { input_name: "dataset" } }, "From Load Image Folder."), "Connect its input 'dataset'. From Load Image Folder.");
  assert.equal(inputWords({ type: "value_not_in_list", message: "", details: "", extra_info: { input_name: "run", received_value: "gone" } }), "'gone' is not there at 'run'. Choose another, or press R to look for new files.");
  assert.equal(inputWords({ type: "value_smaller_than_min", message: "", details: "", extra_info: { input_name: "rank", received_value: 0, input_config: ["INT", { min: 1 }] } }), "'rank' is 0. Set it to 1 or more.");
  assert.equal(inputWords({ type: "something_new", message: "Odd", details: "thing" }), "Odd: thing");
});

test("why a node stopped: our own sentence, memory, or the unexpected, never a stack", () => {
  assert.equal(stopWords({ exception_type: "x.pistachio.training.errors.PistachioError", exception_message: "No picture.\n Add some.\n" }), "No picture. Add some.");
  assert.match(stopWords({ exception_type: "torch.OutOfMemoryError", exception_message: "CUDA" }), /Memory Settings/);
  const words = stopWords({ exception_type: "KeyError", exception_message: "'a'\nTraceback (most recent call last): file.py" });
  assert.match(words, /did not expect: 'a'/);
  assert.doesNotMatch(words, /Traceback/);
});

test("long words end with a sentence", () => {
  assert.equal(brief("One. Two two two. Three three three.", 20), "One. Two two two.");
  assert.equal(brief("word ".repeat(30), 24), "word word word word…");
});
