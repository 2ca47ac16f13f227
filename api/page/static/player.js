/** One session being played: its state, its socket, and the actions on their way. */

import { Problem } from "./api.js";
import { Connection } from "./connection.js";
import { Outbox } from "./outbox.js";
import { apply, begin, send, underWay } from "./session.js";

/** @typedef {import("./session.js").State} State */
/** @typedef {import("./session.js").Pending} Pending */
/** @typedef {import("./connection.js").Status} Status */

/**
 * @typedef {object} Listener
 * @property {(state: State) => void} onState
 * @property {(status: Status) => void} onStatus
 * @property {(action: Pending, why: string) => void} onRefused it will not be done; `why` may be ""
 */

/** An action that met one of these may or may not be accepted: it is sent again with its id. */
const UNCERTAIN = new Set(["unavailable", "internal_error"]);
const AGAIN_MS = 2_000;
const SLOWEST_MS = 15_000;
/** Between two readings of the whole transcript. */
const RELOAD_MS = 2_000;
/** The server takes no frame over 64 KiB. */
const MAX_FRAME = 64 * 1024;

export class Player {
  /**
   * @param {import("./api.js").Api} api
   * @param {string} sessionId
   * @param {Listener} listener
   */
  constructor(api, sessionId, listener) {
    this._api = api;
    this._id = sessionId;
    this._listener = listener;
    this._outbox = new Outbox(sessionId);
    /** @type {State | null} */
    this._state = null;
    this._loading = false;
    this._closed = false;
    this._timer = 0;
    this._reloaded = 0;
    /** Actions that no socket was given yet: those can be taken back. @type {Set<string>} */
    this._unsent = new Set();
    this._connection = new Connection({
      url: () => socketUrl(sessionId, this._state?.seq ?? 0),
      ticket: () => api.ticket(),
      authorize: (refused) => (refused ? api.authorize(true) : Promise.resolve(true)),
      onFrame: (frame) => this._receive(frame),
      onStatus: (status) => this._onStatus(status),
    });
  }

  async open() {
    this._listener.onStatus({ phase: "connecting" });
    await this._load();
    if (!this._closed && this._state !== null) {
      this._connection.start();
    }
  }

  close() {
    this._closed = true;
    clearTimeout(this._timer);
    this._connection.stop();
  }

  wake() {
    this._connection.wake();
  }

  sleep() {
    this._connection.sleep();
  }

  /**
   * Sends an action, now or as soon as there is a connection.
   * @param {import("./session.js").Action} action
   * @param {string} text what its reader sees of it
   */
  act(action, text) {
    if (this._state === null) {
      return;
    }
    const pending = { id: crypto.randomUUID(), action, text };
    if (new Blob([JSON.stringify(frameOf(pending))]).size > MAX_FRAME) {
      this._listener.onRefused(pending, "Not sent: that is too long to be sent at once.");
      return;
    }
    this._outbox.add(pending);
    this._unsent.add(pending.id);
    this._show(send(this._state, pending));
    this._give(pending);
  }

  /** Stops what is under way; an action that was never sent is taken back. */
  async cancel() {
    const work = this._state && underWay(this._state);
    if (work?.taskId) {
      await this._api.cancelTask(work.taskId);
    } else if (work?.actionId && this._unsent.has(work.actionId)) {
      this._takeBack(work.actionId, "");
    } else if (work?.actionId) {
      // It may have arrived all the same; the server then cancels it when it sees it.
      await this._api.cancelAction(this._id, work.actionId);
    }
  }

  /** @param {any} frame */
  _receive(frame) {
    if (this._state === null) {
      return;
    }
    if (frame.type === "error") {
      this._refused(frame);
      return;
    }
    const sent = frame.type === "ack" ? frame.id : frame.data?.client_action_id;
    if (sent) {
      this._outbox.remove(sent);
    }
    this._show(apply(this._state, frame));
    if (this._state.reload) {
      void this._reload();
    }
  }

  /** @param {any} frame */
  _refused(frame) {
    const { code, message } = frame.error ?? {};
    if (UNCERTAIN.has(code)) {
      clearTimeout(this._timer);
      this._timer = window.setTimeout(() => this._flush(), AGAIN_MS);
      return;
    }
    if (frame.id) {
      this._takeBack(frame.id, `Not sent: ${message ?? "the server refused it."}`);
    }
  }

  /**
   * Forgets an action and gives its words back.
   * @param {string} id
   * @param {string} why
   */
  _takeBack(id, why) {
    const taken = this._outbox.remove(id);
    this._unsent.delete(id);
    if (taken && this._state) {
      this._show(apply(this._state, { type: "error", id }));
      this._listener.onRefused(taken, why);
    }
  }

  /** @param {Status} status */
  _onStatus(status) {
    this._listener.onStatus(status);
    if (status.phase === "connected") {
      this._flush();
    }
  }

  _flush() {
    this._outbox.all().forEach((pending) => this._give(pending));
  }

  /** @param {Pending} pending */
  _give(pending) {
    if (this._connection.send(frameOf(pending))) {
      this._unsent.delete(pending.id);
    }
  }

  async _reload() {
    if (this._loading) {
      return;
    }
    this._loading = true;
    // A server whose log never fits must not be asked as fast as it answers.
    const soon = this._reloaded + RELOAD_MS - Date.now();
    if (soon > 0) {
      await new Promise((resolve) => setTimeout(resolve, soon));
    }
    await this._load();
    this._reloaded = Date.now();
    this._connection.renew();
  }

  /** Reads the session, again and again while the server is away. */
  async _load() {
    this._loading = true;
    for (let pause = 500; !this._closed; pause = Math.min(pause * 2, SLOWEST_MS)) {
      try {
        this._take(await this._api.snapshot(this._id));
        break;
      } catch (error) {
        if (this._closed) {
          break; // another session is shown by now
        }
        if (!isPassing(error)) {
          this._loading = false;
          this._end(error);
          return;
        }
        this._listener.onStatus({ phase: "waiting", until: Date.now() + pause });
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
    this._loading = false;
  }

  /** @param {import("./session.js").Snapshot} snapshot */
  _take(snapshot) {
    if (this._closed) {
      return;
    }
    for (const event of snapshot.events) {
      if (event.data?.client_action_id) {
        this._outbox.remove(event.data.client_action_id);
      }
    }
    this._show(begin(snapshot, this._outbox.all()));
  }

  /** @param {unknown} error */
  _end(error) {
    this._connection.stop();
    const words = error instanceof Problem ? error.message : "The session can't be shown.";
    this._listener.onStatus({ phase: "ended", reason: words });
    if (!(error instanceof Problem)) {
      throw error;
    }
  }

  /** @param {State} state */
  _show(state) {
    this._state = state;
    this._listener.onState(state);
  }
}

/** @param {unknown} error */
function isPassing(error) {
  return error instanceof Problem && (error.status === 0 || error.status >= 429);
}

/** @param {Pending} pending */
function frameOf({ id, action }) {
  return { type: "action", id, action };
}

/**
 * @param {string} sessionId
 * @param {number} after
 */
function socketUrl(sessionId, after) {
  const protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return `${protocol}//${location.host}/ws/sessions/${encodeURIComponent(sessionId)}?after=${after}`;
}
