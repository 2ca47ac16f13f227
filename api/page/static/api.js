/** The server's HTTP calls, and its errors in words. */

import { tabStorage } from "./storage.js";

/** What the server, or the way to it, said no to. `code` is stable; the message is for people. */
export class Problem extends Error {
  /**
   * @param {number} status 0 where there was no answer
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.name = "Problem";
    this.status = status;
    this.code = code;
  }
}

const KEY = "fireside:key";

/** Sessions of one page. */
const SESSIONS = 6;
/** Events of one page of the log. */
const EVENTS = 200;
/** How far back usage is asked for; the server tells of one year at once. */
const USAGE_DAYS = 364;
/** How far back the beginning of a task that still runs is looked for. */
const EVENT_PAGES = 10;

export class Api {
  /**
   * @param {object} parts
   * @param {(refused: boolean) => Promise<string | null>} parts.askForKey
   * @param {typeof globalThis.fetch} [parts.request]
   * @param {import("./storage.js").Store} [parts.storage] of the tab: a key does not outlive it
   */
  constructor({ askForKey, request = globalThis.fetch, storage = tabStorage() }) {
    this._askForKey = askForKey;
    this._fetch = request.bind(globalThis);
    this._storage = storage;
    this._key = storage.getItem(KEY);
    /** @type {Promise<boolean> | null} */
    this._asking = null;
  }

  /** @returns {Promise<any[]>} */
  async agents() {
    return (await this._call("GET", "/v1/agents")).agents ?? [];
  }

  /**
   * A page of the sessions, newest first.
   * @param {string | null} before the `next` of the page before
   * @returns {Promise<{sessions: any[], next: string | null}>}
   */
  async sessions(before = null) {
    const from = before === null ? "" : `&before=${encodeURIComponent(before)}`;
    const page = await this._call("GET", `/v1/sessions?limit=${SESSIONS}${from}`);
    return { sessions: page.sessions ?? [], next: page.next ?? null };
  }

  /**
   * A new session. The key makes it the same one when the answer was lost and it is asked again.
   * @param {{agent: string, story?: string, title: string, key: string}} wanted
   * @returns {Promise<any>}
   */
  createSession(wanted) {
    return this._call("POST", "/v1/sessions", wanted);
  }

  /**
   * All that a reader needs to go on: the session, its transcript, the events of its last tasks.
   * @param {string} id
   * @returns {Promise<import("./session.js").Snapshot>}
   */
  async snapshot(id) {
    // In this order: what happens meanwhile is then in the events, which are read last.
    const session = await this._call("GET", path(id));
    const { messages } = await this._call("GET", `${path(id)}/messages?limit=1000`);
    const { events, after } = await this._newestEvents(session);
    return { session, messages, events, after };
  }

  /** @param {string} taskId */
  async cancelTask(taskId) {
    await this._call("POST", `/v1/tasks/${encodeURIComponent(taskId)}/cancel`);
  }

  /**
   * @param {string} sessionId
   * @param {string} actionId
   */
  async cancelAction(sessionId, actionId) {
    await this._call("POST", `${path(sessionId)}/cancel`, { client_action_id: actionId });
  }

  /**
   * What the calls of a session, or of one task, used in the last year.
   * @param {{sessionId?: string, taskId?: string}} of
   * @returns {Promise<import("./cost.js").Usage>}
   */
  async usage({ sessionId, taskId }) {
    const query = new URLSearchParams({ by: "", since: daysAgo(USAGE_DAYS) });
    if (sessionId !== undefined) {
      query.set("session_id", sessionId);
    }
    if (taskId !== undefined) {
      query.set("task_id", taskId);
    }
    return (await this._call("GET", `/v1/usage?${query}`)).total;
  }

  /** @returns {Promise<string | null>} null where the server asks for no key */
  async ticket() {
    return this._key === null ? null : (await this._call("POST", "/v1/ws-tickets")).ticket;
  }

  /**
   * Asks the reader for a key; those who ask at the same time get the same answer.
   * @param {boolean} refused whether a key was tried
   * @returns {Promise<boolean>} false: the reader gave none
   */
  authorize(refused) {
    this._asking ??= this._askForKey(refused)
      .then((key) => this._keep(key))
      .finally(() => {
        this._asking = null;
      });
    return this._asking;
  }

  /** @param {string | null} key */
  _keep(key) {
    if (key === null) {
      return false;
    }
    this._key = key;
    this._storage.setItem(KEY, key);
    return true;
  }

  /**
   * The newest events, from before the beginning of a task that still runs.
   * @param {any} session
   * @returns {Promise<{events: any[], after: number}>}
   */
  async _newestEvents(session) {
    const oldest = Math.max((session.first_seq ?? 1) - 1, 0);
    let after = Math.max(session.head_seq - EVENTS, oldest);
    let events = await this._eventsFrom(session.id, after);
    for (let page = 1; page < EVENT_PAGES && after > oldest; page += 1) {
      if (session.status !== "running" || hasBeginning(events)) {
        break;
      }
      after = Math.max(after - EVENTS, oldest);
      events = await this._eventsFrom(session.id, after);
    }
    return { events, after: events.length > 0 ? events[0].seq - 1 : session.head_seq };
  }

  /**
   * @param {string} id
   * @param {number} after
   */
  async _eventsFrom(id, after) {
    /** @type {any[]} */
    const found = [];
    for (;;) {
      const from = found.at(-1)?.seq ?? after;
      const { events } = await this._call("GET", `${path(id)}/events?after=${from}&limit=1000`);
      found.push(...events);
      if (events.length < 1000) {
        return found;
      }
    }
  }

  /**
   * @param {string} method
   * @param {string} url
   * @param {any} [body]
   * @returns {Promise<any>}
   */
  async _call(method, url, body) {
    const key = this._key;
    const response = await this._request(method, url, body);
    if (response.status === 401) {
      // Another call may have got a new key while this one was under way.
      if (this._key !== key || (await this.authorize(key !== null))) {
        return this._call(method, url, body);
      }
    }
    if (!response.ok) {
      throw await problemOf(response);
    }
    return response.status === 204 ? null : response.json();
  }

  /**
   * @param {string} method
   * @param {string} url
   * @param {any} body
   */
  async _request(method, url, body) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "application/json" };
    if (body !== undefined) {
      headers["Content-Type"] = "application/json";
    }
    if (this._key !== null) {
      headers.Authorization = `Bearer ${this._key}`;
    }
    try {
      return await this._fetch(url, { method, headers, body: body && JSON.stringify(body) });
    } catch {
      throw new Problem(0, "unreachable", "The server can't be reached.");
    }
  }
}

/** @param {number} days */
function daysAgo(days) {
  return new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10);
}

/** @param {string} id */
function path(id) {
  return `/v1/sessions/${encodeURIComponent(id)}`;
}

/**
 * Whether the events have the beginning of a task and not its end.
 * @param {any[]} events
 */
function hasBeginning(events) {
  const ended = new Set(
    events
      .filter((event) => /^task_(completed|failed|cancelled|dead)$/.test(event.type))
      .map((event) => event.task_id),
  );
  return events.some((event) => event.type === "task_started" && !ended.has(event.task_id));
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const words = body.detail || body.title || `The server answered ${response.status}.`;
  return new Problem(response.status, body.code ?? "", String(words));
}
