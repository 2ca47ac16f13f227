/** The reading view: what a session's state looks like, and what its reader can do. */

import { blocks } from "./blocks.js";
import { button, byId, element, write } from "./dom.js";
import { Cost } from "./cost.js";
import { askedOf } from "./dice.js";
import { Panel } from "./panel.js";
import { Scrolling } from "./scrolling.js";
import { underWay } from "./session.js";
import { Speaker } from "./speaker.js";
import { badge, checkElement, dieElement } from "./throws.js";
import { whyElement } from "./why.js";

/** @typedef {import("./session.js").State} State */
/** @typedef {import("./blocks.js").Block} Block */
/** @typedef {import("./session.js").Action} Action */

/**
 * @typedef {object} Deeds
 * @property {(action: Action, text: string) => void} act
 * @property {() => void} cancel
 * @property {() => void} again begins the same once more
 * @property {(of: {sessionId?: string, taskId?: string}) => Promise<import("./cost.js").Usage>} usage
 */

const GO_ON = { id: "", text: "Go on", tags: [] };
const KEYS = 9;
const BELOW_THE_BAR = { rootMargin: "-64px 0px 0px" };

export class Reading {
  /** @param {Deeds} deeds */
  constructor(deeds) {
    this._deeds = deeds;
    this._transcript = byId("transcript");
    this._choices = byId("choices");
    this._words = /** @type {HTMLTextAreaElement} */ (byId("words"));
    this._panel = new Panel();
    this._cost = new Cost(byId("cost"), (sessionId) => deeds.usage({ sessionId }));
    this._scrolling = new Scrolling(byId("latest"));
    this._speaker = new Speaker(byId("spoken"));
    /** @type {Map<string, HTMLElement>} */
    this._shown = new Map();
    /** @type {State | null} */
    this._state = null;
    this._connected = false;
    this._offered = "";
    this._fresh = true;
    this._frame = 0;
    this._listen();
  }

  /**
   * Empties the view for another session.
   * @param {string} title
   */
  clear(title) {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    this._shown.clear();
    this._transcript.replaceChildren();
    this._choices.replaceChildren();
    this._choices.hidden = true;
    byId("under-way").hidden = true;
    byId("ending").hidden = true;
    this._panel.clear();
    this._cost.clear();
    this._speaker.reset([]);
    this._state = null;
    this._offered = "";
    this._fresh = true;
    this.complain("");
    byId("reading-title").textContent = title;
  }

  /**
   * Shows a state, with the next picture: many deltas make one.
   * @param {State} state
   */
  show(state) {
    this._state = state;
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      this._draw();
    });
  }

  /** @param {boolean} connected */
  setConnected(connected) {
    this._connected = connected;
    if (this._state) {
      this.show(this._state);
    }
  }

  /**
   * Tells of something that went wrong; an empty text takes it back.
   * @param {string} words
   */
  complain(words) {
    byId("trouble").textContent = words;
    byId("trouble").hidden = words === "";
  }

  /**
   * Gives words back that could not be sent.
   * @param {string} text
   */
  giveBack(text) {
    this._words.value = [text, this._words.value].filter((one) => one !== "").join("\n");
    this._fit();
  }

  _draw() {
    const state = this._state;
    if (state === null) {
      return;
    }
    const wanted = blocks(state);
    const tale = state.story !== null;
    this._transcript.classList.toggle("tale", tale);
    this._transcript.classList.toggle("talk", !tale);
    this._drawBlocks(wanted);
    this._drawUnderWay(state);
    this._drawChoices(state);
    this._drawEnding(state);
    this._panel.show(state.shared);
    this._cost.follow(state);
    this._words.placeholder = tale ? "Or say, or try, something else …" : "Write something …";
    if (this._fresh) {
      this._speaker.reset(wanted);
      this._invite(tale);
    } else {
      this._speaker.follow(wanted);
    }
    this._scrolling.follow(this._newest(), this._fresh);
    this._fresh = false;
  }

  /**
   * Whoever opens a conversation wants to write; on a phone the keyboard would be in the way.
   * @param {boolean} tale
   */
  _invite(tale) {
    const elsewhere = document.activeElement !== byId("reading-title");
    if (!tale && !elsewhere && matchMedia("(hover: hover)").matches) {
      this._words.focus({ preventScroll: true });
    }
  }

  /** @param {Block[]} wanted */
  _drawBlocks(wanted) {
    const keys = new Set(wanted.map((block) => block.key));
    for (const [key, box] of this._shown) {
      if (!keys.has(key)) {
        box.remove();
        this._shown.delete(key);
      }
    }
    /** @type {Element | null} */
    let before = null;
    for (const block of wanted) {
      const box = this._boxOf(block);
      /** @type {Element | null} */
      const place = before ? before.nextElementSibling : this._transcript.firstElementChild;
      if (place !== box) {
        this._transcript.insertBefore(box, place);
      }
      before = box;
    }
  }

  /** @param {Block} block */
  _boxOf(block) {
    let box = this._shown.get(block.key);
    if (!box) {
      box = this._newBox(block);
      this._shown.set(block.key, box);
    }
    if (block.kind === "message") {
      box.classList.toggle("open", block.open);
      write(/** @type {HTMLElement} */ (box.lastElementChild), block.text);
    }
    return box;
  }

  /** @param {Block} block */
  _newBox(block) {
    switch (block.kind) {
      case "check":
        return checkElement(block.check);
      case "die":
        return dieElement(block.die);
      case "note":
        return this._noteElement(block);
      case "why":
        return whyElement(block, (taskId) => this._deeds.usage({ taskId }));
      case "message":
        return textElement(block);
    }
  }

  /** @param {import("./blocks.js").NoteBlock} block */
  _noteElement({ note, again, said }) {
    const made = element("div", note.tone === "problem" ? "note trouble" : "note", note.text);
    if (again && ["say", "choose", "continue"].includes(again.type)) {
      made.append(" ", button("quiet", () => this._do(again, said), "Try again"));
    }
    return made;
  }

  /** @param {State} state */
  _drawUnderWay(state) {
    const box = byId("under-way");
    const work = underWay(state);
    if (work === null && box.contains(document.activeElement)) {
      this._transcript.focus({ preventScroll: true });
    }
    box.hidden = work === null;
    if (work) {
      byId("under-way-words").textContent = this._wordsOf(work);
    }
  }

  /** @param {NonNullable<ReturnType<typeof underWay>>} work */
  _wordsOf(work) {
    if (work.taskId === null && !this._connected) {
      return "Will be sent when the connection is back.";
    }
    if (work.activity !== null) {
      return /dice|die|roll/i.test(work.activity) ? "The dice roll …" : "Looking something up …";
    }
    return work.writing ? "Writing …" : "One moment …";
  }

  /** @param {State} state */
  _drawChoices(state) {
    const offered = offeredBy(state);
    const signature = JSON.stringify(offered);
    if (signature === this._offered) {
      return;
    }
    this._offered = signature;
    if (this._choices.contains(document.activeElement)) {
      this._transcript.focus({ preventScroll: true });
    }
    this._choices.hidden = offered.length === 0;
    this._choices.replaceChildren(
      ...offered.map((choice, index) => this._choiceElement(choice, index)),
    );
    if (offered.length > 1) {
      this._choices.append(hint(Math.min(offered.length, KEYS)));
      if (!this._fresh) {
        this._speaker.say(`${offered.length} choices.`);
      }
    }
  }

  /**
   * @param {import("./session.js").Choice} choice
   * @param {number} index
   */
  _choiceElement(choice, index) {
    const number = element("span", "choice-number", index < KEYS ? String(index + 1) : "·");
    number.setAttribute("aria-hidden", "true");
    const text = element("span", "choice-text", choice.text);
    const made = button("choice", () => this._choose(choice), number, text);
    const asked = askedOf(choice.tags);
    if (asked) {
      made.append(badge(asked));
    }
    if (index < KEYS) {
      made.setAttribute("aria-keyshortcuts", String(index + 1));
    }
    return made;
  }

  /** @param {State} state */
  _drawEnding(state) {
    const box = byId("ending");
    const over = isOver(state);
    if (over && box.hidden) {
      const away = element("a", "quiet", "Back to the shelf");
      away.href = "#/";
      const again = button("loud", this._deeds.again, "Read it once more");
      box.replaceChildren(element("p", "", "The end"), again, away);
    }
    box.hidden = !over;
  }

  /** Where what is new begins: with what the reader did last, or with the title. */
  _newest() {
    const said = this._transcript.querySelectorAll(":scope > .said");
    return said[said.length - 1] ?? byId("reading-title");
  }

  /** @param {import("./session.js").Choice} choice */
  _choose(choice) {
    if (choice === GO_ON) {
      this._do({ type: "continue" }, "");
    } else {
      this._do({ type: "choose", choice_id: choice.id }, choice.text);
    }
  }

  /**
   * @param {Action} action
   * @param {string} text
   */
  _do(action, text) {
    this.complain("");
    this._scrolling.attend();
    this._deeds.act(action, text);
  }

  _say() {
    const text = this._words.value.trim();
    if (text !== "") {
      this._words.value = "";
      this._fit();
      this._do({ type: "say", text }, text);
    }
    if (text !== "" && this._state?.story && matchMedia("(hover: none)").matches) {
      this._transcript.focus({ preventScroll: true }); // a phone's keyboard would cover the answer
    } else {
      this._words.focus();
    }
  }

  /** Makes the field as high as its text. */
  _fit() {
    this._words.style.height = "auto";
    this._words.style.height = `${this._words.scrollHeight}px`;
  }

  _listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this._say();
    });
    this._words.addEventListener("input", () => this._fit());
    this._words.addEventListener("keydown", (event) => {
      // In Safari a composition is over by then, and only the code tells that the key was for it.
      const composes = event.isComposing || event.keyCode === 229;
      if (event.key === "Enter" && !event.shiftKey && !composes) {
        event.preventDefault();
        this._say();
      } else if (event.key === "Escape") {
        this._transcript.focus({ preventScroll: true });
      }
    });
    byId("stop").addEventListener("click", () => this._deeds.cancel());
    document.addEventListener("keydown", (event) => this._key(event));
    // One title is enough: the bar's is for when the other one is out of sight.
    new IntersectionObserver(([title]) => {
      byId("bar-title").classList.toggle("away", title.isIntersecting);
    }, BELOW_THE_BAR).observe(byId("reading-title"));
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const target = /** @type {Element} */ (event.target);
    const taken = event.ctrlKey || event.metaKey || event.altKey || event.repeat;
    if (taken || byId("reading").hidden || target.closest("input, textarea, dialog")) {
      return;
    }
    if (/^[1-9]$/.test(event.key)) {
      const choices = this._choices.querySelectorAll("button");
      choices[Number(event.key) - 1]?.click();
    }
  }
}

/** @param {import("./blocks.js").TextBlock} block */
function textElement({ role, ghost }) {
  if (role !== "user") {
    return element("div", "passage", element("div", ""));
  }
  const who = element("span", "unseen", "You: ");
  return element("div", ghost ? "said ghost" : "said", who, element("div", ""));
}

/**
 * What the reader can choose now.
 * @param {State} state
 */
function offeredBy(state) {
  if (underWay(state) !== null || isOver(state)) {
    return [];
  }
  if (state.choices.length > 0) {
    return state.choices;
  }
  return state.story !== null && state.tasks.size > 0 ? [GO_ON] : [];
}

/** @param {State} state */
function isOver(state) {
  return state.shared.ended === true && underWay(state) === null;
}

/** @param {number} count */
function hint(count) {
  const made = element("p", "choices-hint");
  made.append("Press ", element("kbd", "", "1"), " to ", element("kbd", "", String(count)));
  made.append(" to choose; ", element("kbd", "", "Esc"), " leaves the text field.");
  return made;
}
