/** The panel with what a session shares: the variables of a story that its author made public. */

import { byId, element } from "./dom.js";
import { readable } from "./throws.js";

const SHORT = 60;

export class Panel {
  constructor() {
    this._panel = byId("panel");
    this._toggle = byId("panel-toggle");
    this._list = byId("panel-list");
    /** @type {Map<string, string>} */
    this._shown = new Map();
    this._toggle.addEventListener("click", () => this._open(!this._isOpen()));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this._isOpen()) {
        this._open(false);
        this._toggle.focus();
      }
    });
  }

  /** Empties the panel for another session. */
  clear() {
    this._open(false);
    this._shown = new Map();
    this._panel.hidden = true;
    this._toggle.hidden = true;
  }

  /** @param {Record<string, any>} shared */
  show(shared) {
    const entries = entriesOf(shared);
    if (entries.length === this._shown.size && entries.every(([n, v]) => this._shown.get(n) === v)) {
      return;
    }
    const before = this._shown;
    this._list.replaceChildren(
      ...entries.flatMap(([name, value]) => {
        const changed = before.size > 0 && before.get(name) !== value;
        return [element("dt", "", readable(name)), element("dd", changed ? "changed" : "", value)];
      }),
    );
    this._shown = new Map(entries);
    this._panel.hidden = entries.length === 0;
    this._toggle.hidden = entries.length === 0;
  }

  _isOpen() {
    return this._panel.classList.contains("shown");
  }

  /** @param {boolean} open */
  _open(open) {
    this._panel.classList.toggle("shown", open);
    this._toggle.setAttribute("aria-expanded", String(open));
  }
}

/**
 * @param {Record<string, any>} shared
 * @returns {[string, string][]}
 */
function entriesOf(shared) {
  const { variables, scene: _scene, ended: _ended, ...others } = shared;
  const told = variables && typeof variables === "object" ? variables : others;
  return Object.entries(told).flatMap(([name, value]) => {
    const words = wordsOf(value);
    return words === null ? [] : [/** @type {[string, string]} */ ([name, words])];
  });
}

/**
 * @param {unknown} value
 * @returns {string | null} null: nothing for a small panel
 */
function wordsOf(value) {
  if (typeof value === "boolean") {
    return value ? "yes" : "no";
  }
  if (typeof value === "number") {
    return String(Math.round(value * 100) / 100);
  }
  if (Array.isArray(value)) {
    return value.length === 0 ? "nothing" : value.map((one) => readable(String(one))).join(", ");
  }
  return typeof value === "string" && value !== "" && value.length <= SHORT ? value : null;
}
