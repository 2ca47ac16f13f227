/** Keeps the newest text in sight, unless the reader looks elsewhere. */

const NEAR = 140;
const FAR = 400;
/** The bar, and some air below it. */
const TOP = 76;

export class Scrolling {
  /** @param {HTMLElement} latest the button that leads to the newest text */
  constructor(latest) {
    this._latest = latest;
    this._following = true;
    this._last = window.scrollY;
    window.addEventListener("scroll", () => this._moved(), { passive: true });
    latest.addEventListener("click", () => this.toEnd());
  }

  /** Goes to the newest text and follows it from there. */
  toEnd() {
    this._following = true;
    window.scrollTo({ top: document.documentElement.scrollHeight });
  }

  /**
   * Follows the text as it grows, but never so far that its beginning is out of sight: reading
   * begins at the top.
   * @param {Element | null} beginning of what is new
   * @param {ScrollBehavior} [behavior]
   */
  follow(beginning, behavior = "auto") {
    if (!this._following) {
      this._show();
      return;
    }
    const end = document.documentElement.scrollHeight - window.innerHeight;
    const start = beginning ? window.scrollY + beginning.getBoundingClientRect().top - TOP : end;
    const target = Math.min(end, Math.max(start, 0));
    if (target > window.scrollY + 1) {
      window.scrollTo({ top: target, behavior });
    }
    this._show();
  }

  /** From now on the newest text is followed. */
  attend() {
    this._following = true;
  }

  _moved() {
    const up = window.scrollY < this._last - 2;
    this._last = window.scrollY;
    if (this._distance() < NEAR) {
      this._following = true;
    } else if (up) {
      this._following = false;
    }
    this._show();
  }

  _show() {
    this._latest.hidden = this._following || this._distance() < FAR;
  }

  _distance() {
    return document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
  }
}
