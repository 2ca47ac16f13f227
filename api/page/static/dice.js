/** Dice in what the server tells: a check in a decision, a die that a tool threw, a choice's tags. */

import { textOf } from "./messages.js";

/** @typedef {{stat: string, dc: number, roll: number, total: number, success: boolean}} Check */
/** @typedef {{sides: number, value: number}} Die */

/**
 * The check that a task's result tells of, if any.
 * @param {any} result
 * @returns {Check | null}
 */
export function checkOf(result) {
  const check = result?.decision?.check;
  if (!check || !Number.isFinite(check.roll)) {
    return null;
  }
  const total = Number.isFinite(check.total) ? check.total : check.roll;
  return {
    stat: typeof check.stat === "string" ? check.stat : "",
    dc: Number.isFinite(check.dc) ? check.dc : NaN,
    roll: check.roll,
    total,
    success: typeof check.success === "boolean" ? check.success : total >= check.dc,
  };
}

/**
 * The die that a tool's result shows: in its details, or as the number that a dice tool answered.
 * @param {any} message a message of the role `tool_result`
 * @param {any} call the tool call that it answers, if known
 * @returns {Die | null}
 */
export function dieOf(message, call) {
  if (message.is_error === true) {
    return null;
  }
  const details = message.details ?? {};
  const told = [details.roll, details.value, details.total].find(Number.isFinite);
  const named = /(^|_)(dice|die|roll)/i.test(String(message.tool_name ?? ""));
  const said = named ? /-?\d+/.exec(textOf(message)) : null;
  const value = told ?? (said ? Number(said[0]) : undefined);
  if (value === undefined || (!named && told === undefined)) {
    return null;
  }
  const asked = Number(details.sides ?? call?.arguments?.sides);
  return { value, sides: Number.isFinite(asked) && asked > 1 ? asked : named ? 6 : 20 };
}

/**
 * What a choice's tags ask of luck: `dc:12`, `stat:wits`.
 * @param {unknown} tags
 * @returns {{dc: number, stat: string} | null}
 */
export function askedOf(tags) {
  const told = new Map();
  for (const tag of Array.isArray(tags) ? tags : []) {
    const [name, ...rest] = String(tag).split(":");
    if (rest.length > 0 && !told.has(name.trim().toLowerCase())) {
      told.set(name.trim().toLowerCase(), rest.join(":").trim());
    }
  }
  const dc = Number.parseInt(told.get("dc") ?? "", 10);
  return Number.isFinite(dc) ? { dc, stat: told.get("stat") ?? "" } : null;
}
