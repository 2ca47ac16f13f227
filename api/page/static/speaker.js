/** Tells a screen reader of finished paragraphs, each once, instead of every piece of text. */

import { element } from "./dom.js";
import { paragraphs, plain } from "./prose.js";
import { wordsOfCheck, wordsOfDie } from "./throws.js";

const KEPT = 12;

export class Speaker {
  /** @param {HTMLElement} region a live region */
  constructor(region) {
    this._region = region;
    /** How many paragraphs of a block were told. @type {Map<string, number>} */
    this._told = new Map();
  }

  /**
   * Forgets everything; what stands there already is not told again.
   * @param {import("./blocks.js").Block[]} blocks
   */
  reset(blocks) {
    this._region.replaceChildren();
    this._told = new Map(blocks.map((block) => [block.key, sayable(block).length]));
  }

  /** @param {import("./blocks.js").Block[]} blocks */
  follow(blocks) {
    for (const block of blocks) {
      const words = sayable(block);
      const told = this._told.get(block.key) ?? 0;
      words.slice(told).forEach((one) => this.say(one));
      this._told.set(block.key, Math.max(told, words.length));
    }
  }

  /** @param {string} words */
  say(words) {
    this._region.append(element("p", "", words));
    while (this._region.children.length > KEPT) {
      this._region.firstElementChild?.remove();
    }
  }
}

/**
 * What of a block can be told: of a text that still grows all but its last paragraph.
 * @param {import("./blocks.js").Block} block
 * @returns {string[]}
 */
function sayable(block) {
  switch (block.kind) {
    case "check":
      return [wordsOfCheck(block.check)];
    case "die":
      return [wordsOfDie(block.die)];
    case "note":
      return [block.note.text];
    case "why":
      return [];
    case "message": {
      const all = block.role === "user" ? [] : paragraphs(block.text).map(plain);
      return block.open ? all.slice(0, -1) : all;
    }
  }
}
