// @ts-check
/** Short sentences for what went wrong: of a node's inputs before a run, and of a node that stopped in one. Knows no page. */

import { say } from "./words.mjs";

const MOST_LETTERS = 360; // more nobody reads in a corner of the window
const OWN_ERROR = /PistachioError$/;
const OUT_OF_MEMORY = /OutOfMemory|OOM_EXCEPTION/i;

/** @typedef {{type: string, message: string, details: string, extra_info?: any}} InputError as the host's server tells it */

/** What to change at an input. @param {InputError} error @param {string} [from] what the input's tooltip says of its source @returns {string} */
export function inputWords({ type, message, details, extra_info: info }, from = "") {
  const name = info?.input_name ?? "";
  const [least, most] = [info?.input_config?.[1]?.min, info?.input_config?.[1]?.max];
  const value = info?.received_value === undefined ? "" : String(info.received_value);
  if (type === "custom_validation_failed") {
    const own = details.startsWith(`${name} - `) ? details.slice(name.length + 3) : "";
    return own ? brief(own) : say("notices.input.wrong", { name });
  }
  if (type === "required_input_missing") return from ? say("notices.input.missing.from", { name: name || details, from }) : say("notices.input.missing", { name: name || details });
  if (type === "value_not_in_list") return value ? say("notices.input.gone", { name, value }) : say("notices.input.empty", { name });
  if (type === "value_smaller_than_min" && least !== undefined) return say("notices.input.small", { name, value, least: String(least) });
  if (type === "value_bigger_than_max" && most !== undefined) return say("notices.input.large", { name, value, most: String(most) });
  if (type === "return_type_mismatch") return from ? say("notices.input.type.from", { name, from }) : say("notices.input.type", { name });
  if (type === "invalid_input_type") return say("notices.input.no_value", { name, value });
  return brief([message, details].filter(Boolean).join(": "));
}

/** Why a node stopped, and what to change. @param {{exception_type?: string, exception_message?: string}} error @returns {string} */
export function stopWords({ exception_type: type = "", exception_message: message = "" }) {
  if (OWN_ERROR.test(type)) return brief(message);
  if (OUT_OF_MEMORY.test(type)) return say("notices.memory");
  return say("notices.unexpected", { reason: brief(message.split("\n")[0], 160) || type });
}

/** Whole sentences as far as they fit. @param {string} text @param {number} [most] letters */
export function brief(text, most = MOST_LETTERS) {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= most) return line;
  const cut = line.slice(0, most);
  const end = Math.max(cut.lastIndexOf(". "), cut.lastIndexOf("。"));
  return end > most / 3 ? cut.slice(0, end + 1) : `${cut.slice(0, Math.max(cut.lastIndexOf(" "), most / 2))}…`;
}
