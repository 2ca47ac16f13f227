/** Where everything meets: the address tells which view is shown, and the parts are wired up. */

import { Api, Problem } from "./api.js";
import { byId } from "./dom.js";
import { askForKey } from "./keydialog.js";
import { Player } from "./player.js";
import { Reading } from "./reading.js";
import { offerOf, offers, showShelf, titleOf } from "./shelf.js";

/** @typedef {import("./shelf.js").Offer} Offer */
/** @typedef {import("./connection.js").Status} Status */

const api = new Api({ askForKey });

/** @type {Player | null} */
let player = null;
/** @type {import("./session.js").State | null} */
let state = null;
/** @type {Offer[]} */
let offered = [];
/** @type {Status} */
let status = { phase: "connecting" };
let ticking = 0;
let beginning = false;
/**
 * The key of a session that was asked for until it is there: asked again, it is the same one.
 * @type {Map<string, string>}
 */
const keys = new Map();

const reading = new Reading({
  act: (action, text) => player?.act(action, text),
  cancel: () => void attempt(async () => player?.cancel()),
  usage: (of) => api.usage(of),
  again: () => {
    const offer = state && offerOf(state, offered);
    if (offer) {
      void attempt(() => begin(offer));
    }
  },
});

async function route() {
  leave();
  // An id has nothing in it that an address would escape.
  const id = /^#\/session\/([\w-]+)$/.exec(location.hash)?.[1];
  if (id === undefined) {
    await openShelf();
  } else {
    await openSession(id);
  }
}

function leave() {
  player?.close();
  player = null;
  state = null;
  clearInterval(ticking);
}

async function openShelf() {
  show("shelf", "Fireside");
  byId("shelf-problem").hidden = true;
  byId("shelf-loading").hidden = false;
  try {
    const [agents, recent] = await Promise.all([api.agents(), api.sessions()]);
    const { stories, companions } = offers(agents);
    offered = [...stories, ...companions];
    showShelf(agents, recent, {
      begin: (offer) => attempt(() => begin(offer)),
      older: (before) => attempt(() => api.sessions(before)),
    });
  } catch (error) {
    complain(error);
  } finally {
    byId("shelf-loading").hidden = true;
  }
}

/** @param {Offer} offer */
async function begin(offer) {
  if (beginning) {
    return;
  }
  beginning = true;
  try {
    const { agent, story, title } = offer;
    const name = `${agent}/${story ?? ""}`;
    const key = keys.get(name) ?? `page-${crypto.randomUUID()}`;
    keys.set(name, key);
    const session = await api.createSession({ agent, story, title, key });
    keys.delete(name);
    location.hash = `#/session/${session.id}`;
  } finally {
    beginning = false;
  }
}

/** @param {string} id */
async function openSession(id) {
  show("reading", "Fireside");
  reading.clear("");
  byId("reading-title").focus({ preventScroll: true });
  window.scrollTo({ top: 0, behavior: "instant" });
  const one = new Player(api, id, {
    onState: (next) => {
      const first = state === null;
      state = next;
      if (first) {
        void name(next);
      }
      reading.show(next);
    },
    onStatus: (next) => tell(next),
    onRefused: ({ text, action }, why) => {
      reading.complain(why);
      if (action.type === "say") {
        reading.giveBack(text);
      }
    },
  });
  player = one;
  ticking = window.setInterval(() => tell(status), 1000);
  await one.open();
}

/** @param {import("./session.js").State} of */
async function name(of) {
  setTitle(titleOf(of, offered));
  if (offered.length === 0) {
    const { stories, companions } = offers(await api.agents().catch(() => []));
    offered = [...stories, ...companions];
    if (state?.id === of.id) {
      setTitle(titleOf(of, offered));
    }
  }
}

/** @param {string} title */
function setTitle(title) {
  byId("reading-title").textContent = title;
  byId("bar-title").textContent = title;
  document.title = `${title} · Fireside`;
}

/**
 * @param {"shelf" | "reading"} view
 * @param {string} title
 */
function show(view, title) {
  document.title = title;
  document.body.classList.toggle("in-session", view === "reading");
  byId("shelf").hidden = view !== "shelf";
  byId("reading").hidden = view !== "reading";
  byId("connection").hidden = view !== "reading";
  byId("panel-toggle").hidden = true;
  byId("bar-title").textContent = "";
}

/** @param {Status} next */
function tell(next) {
  const changed = next.phase !== status.phase;
  status = next;
  const line = byId("connection");
  const words = wordsOf(next);
  line.dataset.phase = next.phase;
  if (line.textContent !== words) {
    line.textContent = words;
  }
  // Heard once for each change: a countdown that is read out every second helps nobody.
  if (changed) {
    byId("connection-spoken").textContent = next.phase === "waiting" ? "Reconnecting" : words;
  }
  reading.setConnected(next.phase === "connected");
  if (next.phase === "ended") {
    reading.complain(next.reason);
  }
}

/** @param {Status} of */
function wordsOf(of) {
  switch (of.phase) {
    case "connecting":
      return "Connecting …";
    case "connected":
      return "Connected";
    case "waiting":
      return `Reconnecting in ${Math.max(1, Math.ceil((of.until - Date.now()) / 1000))} s`;
    case "offline":
      return "Offline";
    case "ended":
      return "Not connected";
  }
}

/**
 * Does something and tells what goes wrong with it.
 * @template Result
 * @param {() => Promise<Result> | undefined} deed
 * @returns {Promise<Result | undefined>}
 */
async function attempt(deed) {
  try {
    return await deed();
  } catch (error) {
    complain(error);
    return undefined;
  }
}

/** @param {unknown} error */
function complain(error) {
  const words = error instanceof Problem ? error.message : "Something went wrong on this page.";
  if (byId("reading").hidden) {
    byId("shelf-problem").textContent = words;
    byId("shelf-problem").hidden = false;
  } else {
    reading.complain(words);
  }
  if (!(error instanceof Problem)) {
    throw error;
  }
}

window.addEventListener("hashchange", () => void route());
window.addEventListener("online", () => player?.wake());
window.addEventListener("offline", () => player?.sleep());
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") {
    player?.wake();
  }
});
void route();
