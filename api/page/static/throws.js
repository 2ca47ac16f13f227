/** Throws of dice as one sees and hears them. */

import { element, icon } from "./dom.js";

/** @typedef {import("./dice.js").Check} Check */
/** @typedef {import("./dice.js").Die} Die */

/** @param {Check} check */
export function wordsOfCheck(check) {
  const against = Number.isFinite(check.dc) ? ` against ${check.dc}` : "";
  const stat = check.stat === "" ? "A throw" : readable(check.stat);
  const end = check.success ? "success" : "failure";
  return `${stat}: ${check.roll} on the die${sum(check)}${against}, ${end}.`;
}

/** @param {Die} die */
export function wordsOfDie(die) {
  return `A die of ${die.sides} sides shows ${die.value}.`;
}

/** @param {Check} check */
export function checkElement(check) {
  const stat = check.stat === "" ? "" : `${readable(check.stat)} `;
  const against = Number.isFinite(check.dc) ? ` against ${check.dc}` : "";
  const box = throwElement(20, check.roll, `${stat}${check.total}${against}`);
  box.dataset.end = check.success ? "good" : "bad";
  box.append(element("span", "throw-end", check.success ? "Success" : "Failure"));
  box.title = wordsOfCheck(check);
  return box;
}

/** @param {Die} die */
export function dieElement(die) {
  return throwElement(die.sides, die.value, `on a die of ${die.sides} sides`);
}

/**
 * The badge of a choice that takes luck.
 * @param {{dc: number, stat: string}} asked
 */
export function badge({ dc, stat }) {
  const name = stat === "" ? "Luck" : readable(stat);
  return element(
    "span",
    "badge",
    icon("d20"),
    element("span", "unseen", "Takes a throw: "),
    `${name} ${dc}`,
  );
}

/**
 * A name of the program's as a person writes it.
 * @param {string} name
 */
export function readable(name) {
  const words = name.replaceAll(/[_-]+/g, " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/**
 * @param {number} sides
 * @param {number} value
 * @param {string} words
 */
function throwElement(sides, value, words) {
  const die = element("span", "throw-die", String(value));
  die.dataset.sides = String(sides);
  return element("div", "throw", die, element("span", "", words));
}

/** @param {Check} check */
function sum(check) {
  const added = check.total - check.roll;
  if (added === 0) {
    return "";
  }
  return ` ${added > 0 ? "plus" : "minus"} ${Math.abs(added)} makes ${check.total}`;
}
