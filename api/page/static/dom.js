/** Building nodes. Text only ever becomes text nodes; there is no way from here to markup. */

import { paragraphs, spans } from "./prose.js";

const TAGS = { em: "em", strong: "strong" };

/**
 * An element with a class and what is in it.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className !== "") {
    made.className = className;
  }
  made.append(...children);
  return made;
}

/**
 * @param {string} name
 * @param {() => void} act
 * @param {...(Node | string)} children
 */
export function button(name, act, ...children) {
  const made = element("button", name, ...children);
  made.type = "button";
  made.addEventListener("click", ({ detail }) => {
    // The second click of a double one falls on what the first one brought.
    if (detail < 2) {
      act();
    }
  });
  return made;
}

/** @param {string} name of a file in icons/ */
export function icon(name) {
  const made = element("span", `icon icon-${name}`);
  made.setAttribute("aria-hidden", "true");
  return made;
}

/**
 * The element of the page with this id.
 * @template {HTMLElement} [Kind=HTMLElement]
 * @param {string} id
 * @returns {Kind}
 */
export function byId(id) {
  return /** @type {Kind} */ (document.getElementById(id));
}

/** @type {WeakMap<Element, string[]>} */
const written = new WeakMap();

/**
 * Makes the paragraphs of a box those of a text; those that stay the same are not touched, so that
 * a selection and a screen reader's place survive while the text grows.
 * @param {HTMLElement} box has nothing but what this function put there
 * @param {string} text
 */
export function write(box, text) {
  const wanted = paragraphs(text);
  const there = written.get(box) ?? [];
  const firstOther = wanted.findIndex((paragraph, index) => paragraph !== there[index]);
  const keep = firstOther === -1 ? wanted.length : firstOther;
  while (box.children.length > keep) {
    box.lastElementChild?.remove();
  }
  box.append(...wanted.slice(keep).map(paragraphElement));
  written.set(box, wanted);
}

/** @param {string} paragraph */
function paragraphElement(paragraph) {
  const nodes = spans(paragraph).map(({ text, mark }) =>
    mark === "plain" ? text : element(/** @type {"em" | "strong"} */ (TAGS[mark]), "", text),
  );
  return element("p", "", ...nodes);
}
