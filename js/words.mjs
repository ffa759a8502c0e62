// @ts-check
/**
 * Says things in the user's language: keys are those of words/en.mjs, which every other table has too.
 * Knows neither the host nor the page, so that node runs it; the entry calls `speak` before anything is shown.
 */

import en from "./words/en.mjs";

/** @typedef {keyof typeof en} Key */
/** @typedef {{[key in Key]: string}} Words */
/** @template {string} T @typedef {T extends `${string}{${infer Name}}${infer Rest}` ? Name | Placeholder<Rest> : never} Placeholder */
/** The values that a text's placeholders stand for: none where it has none. @template {string} T @typedef {[Placeholder<T>] extends [never] ? [] : [values: {[name in Placeholder<T>]: string | number}]} Values */
/** A key whose text has no placeholder, for tables of keys. @typedef {{[K in Key]: Placeholder<typeof en[K]> extends never ? K : never}[Key]} PlainKey */
/** What `x.one` and `x.other` have in common. @typedef {Key extends infer K ? K extends `${infer Stem}.other` ? Stem : never : never} CountedKey */

/** A sentence of the server's as its code and values; other sentences and lists may be among these. @typedef {{code: string, values: Record<string, Said>}} Message */
/** @typedef {string | Message | Said[]} Said */

/** Languages beside English: what the scripts say, and what the server says, by its codes. @type {Record<string, () => Promise<[{default: Words}, {default: Record<string, string>}]>>} */
const LANGUAGES = { zh: () => Promise.all([import("./words/zh.mjs"), import("./words/server/zh.mjs")]) };

/** Four digits stay together: step 1500, but 20,000 points. @type {Intl.NumberFormatOptions} */
const NUMBERS = { useGrouping: "min2" };

/** @type {Words} */
let words = en;
/** Empty in English, which the server itself writes. @type {Record<string, string>} */
let sentences = {};
let language = "en";
let number = new Intl.NumberFormat(language, NUMBERS);
let plural = new Intl.PluralRules(language);

/** Loads the words of a locale of the host; English where the pack has none of it. @param {string} locale */
export async function speak(locale) {
  const load = Object.hasOwn(LANGUAGES, locale) ? LANGUAGES[locale] : null;
  const [scripts, server] = load ? await load() : [{ default: en }, { default: {} }];
  words = scripts.default;
  sentences = server.default;
  language = load ? locale : "en";
  number = new Intl.NumberFormat(language, NUMBERS);
  plural = new Intl.PluralRules(language);
}

/** The language that is spoken, for dates and the like. */
export function spoken() {
  return language;
}

/**
 * Numbers are written as the language writes them; what must stay as it is (a port, a year) is given as a string.
 * @template {Key} K @param {K} key @param {Values<typeof en[K]>} values @returns {string}
 */
export function say(key, ...values) {
  return filled(words[key] ?? key, values[0] ?? {});
}

/**
 * Takes `{key}.one`, `{key}.other` and so on, by the language's rules; the text has the number as {count}.
 * @template {CountedKey} K @param {K} key @param {number} count
 * @param {Record<string, string | number>} values of its other placeholders @returns {string}
 */
export function sayCounted(key, count, values = {}) {
  const form = /** @type {Key} */ (`${key}.${plural.select(count)}`);
  return filled(words[form] ?? words[/** @type {Key} */ (`${key}.other`)], { ...values, count });
}

/**
 * What the server says, in the user's language where that is known: a run of an older version has no message beside its sentence.
 * @param {string} english @param {Message | null | undefined} message
 */
export function translated(english, message) {
  return (message && said(message)) ?? english;
}

/** Several, in their order. @param {{text: string, message: Message | null}[] | undefined} sentences @param {string[]} english where a server of an older version sends no sentences */
export function saidOf(sentences, english) {
  return sentences?.map(({ text, message }) => translated(text, message)) ?? english;
}

/** @param {Said} part @returns {string | null} null where one of its sentences is not known */
function said(part) {
  if (typeof part === "string") return part;
  if (Array.isArray(part)) {
    const items = part.map(said);
    return items.includes(null) ? null : items.join(say("list.values"));
  }
  const text = Object.hasOwn(sentences, part.code) ? sentences[part.code] : null;
  const values = Object.entries(part.values).map(([name, value]) => /** @type {const} */ ([name, said(value)]));
  return text === null || values.some(([, value]) => value === null) ? null : filled(text, Object.fromEntries(values));
}

/** @param {number} value @param {Intl.NumberFormatOptions} [options] */
export function sayNumber(value, options) {
  return (options ? new Intl.NumberFormat(language, { ...NUMBERS, ...options }) : number).format(value);
}

/** @param {string} text @param {Record<string, string | number | null>} values */
function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return value === undefined || value === null ? whole : typeof value === "number" ? number.format(value) : value;
  });
}
