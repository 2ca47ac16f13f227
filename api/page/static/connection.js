/**
 * The socket of one session: opened, watched, and opened again with `after` when it is lost.
 *
 * It passes frames on as they come; what they mean is the session's business.
 */

/**
 * @typedef {{phase: "connecting"} | {phase: "connected"} | {phase: "waiting", until: number} | {phase: "offline"} | {phase: "ended", reason: string}} Status
 * `until` is a time in milliseconds since 1970
 */

/**
 * @typedef {object} Wiring
 * @property {() => string} url where to connect, with the newest `after`
 * @property {() => Promise<string | null>} ticket of the socket; null where none is needed
 * @property {(refused: boolean) => Promise<boolean>} authorize asks for a key; false: given up
 * @property {(frame: any) => void} onFrame
 * @property {(status: Status) => void} onStatus
 * @property {() => boolean} [isOnline]
 * @property {() => number} [random] from 0 to 1
 * @property {() => number} [now]
 * @property {typeof WebSocket} [Socket]
 * @property {(call: () => void, milliseconds: number) => any} [setTimer]
 * @property {(timer: any) => void} [clearTimer]
 */

export const CLOSE = {
  badAfter: 1008,
  unauthenticated: 4401,
  wrongOrigin: 4403,
  noSession: 4404,
  tooManySockets: 4429,
};

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 15_000;
const CROWDED_PAUSE = 10_000;
/** The server pings every 20 s: two missed pings and a bit. */
const SILENCE = 50_000;

const FATAL = new Map([
  [CLOSE.badAfter, "The server did not understand where to go on. Reload the page."],
  [CLOSE.wrongOrigin, "This page may not connect to the server from here."],
  [CLOSE.noSession, "There is no such session any more."],
]);

export class Connection {
  /** @param {Wiring} wiring */
  constructor(wiring) {
    this._wiring = {
      isOnline: () => globalThis.navigator?.onLine !== false,
      random: Math.random,
      now: Date.now,
      Socket: globalThis.WebSocket,
      setTimer: (/** @type {() => void} */ call, /** @type {number} */ ms) => setTimeout(call, ms),
      clearTimer: (/** @type {any} */ timer) => clearTimeout(timer),
      ...wiring,
    };
    /** @type {WebSocket | null} */
    this._socket = null;
    this._timer = null;
    this._watchdog = null;
    this._failures = 0;
    this._open = false;
    this._ended = false;
    /** Counts the tries, so that what an earlier one still says is not heard. */
    this._try = 0;
  }

  start() {
    this._connect();
  }

  /** Closes the socket for good. */
  stop() {
    this._ended = true;
    this._drop();
  }

  /** Tries again now, where it would have waited: the network is back, or the reader is. */
  wake() {
    if (!this._ended && !this._open && this._timer !== null) {
      this._connect();
    }
  }

  /** The network is gone: the socket will not tell for minutes. */
  sleep() {
    if (!this._ended) {
      this._drop();
      this._wait();
    }
  }

  /** Closes the socket and connects anew, with the `after` of now. */
  renew() {
    if (!this._ended) {
      this._connect();
    }
  }

  /**
   * @param {any} frame
   * @returns {boolean} whether there was an open socket to give it to
   */
  send(frame) {
    if (!this._open || this._socket === null) {
      return false;
    }
    this._socket.send(JSON.stringify(frame));
    return true;
  }

  async _connect() {
    this._drop();
    this._try += 1;
    const one = this._try;
    this._tell({ phase: "connecting" });
    /** @type {string | null} */
    let ticket;
    try {
      ticket = await this._wiring.ticket();
    } catch {
      if (one === this._try && !this._ended) {
        this._failures += 1;
        this._wait();
      }
      return;
    }
    if (one === this._try && !this._ended) {
      this._dial(ticket);
    }
  }

  /** @param {string | null} ticket */
  _dial(ticket) {
    const socket = new this._wiring.Socket(this._wiring.url());
    this._socket = socket;
    this._watch();
    socket.addEventListener("open", () => {
      if (socket === this._socket) {
        if (ticket !== null) {
          socket.send(JSON.stringify({ type: "auth", ticket }));
        }
        this._open = true;
        this._watch();
        this._tell({ phase: "connected" });
      }
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket === this._socket) {
        this._receive(data);
      }
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket === this._socket) {
        this._lost(code);
      }
    });
  }

  /** @param {unknown} data */
  _receive(data) {
    this._failures = 0;
    this._watch();
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return; // nothing of ours
    }
    if (frame?.type === "ping") {
      this.send({ type: "pong" });
    } else if (frame) {
      this._wiring.onFrame(frame);
    }
  }

  /** @param {number} code */
  async _lost(code) {
    this._drop();
    const reason = FATAL.get(code);
    if (reason !== undefined) {
      this._end(reason);
    } else if (code === CLOSE.unauthenticated) {
      await this._authorize();
    } else {
      this._failures += 1;
      this._wait(code === CLOSE.tooManySockets ? CROWDED_PAUSE : 0);
    }
  }

  async _authorize() {
    const one = this._try;
    // A ticket may have run out on its way: the key is asked for only when it happens again.
    this._failures += 1;
    const granted = await this._wiring.authorize(this._failures > 1);
    if (one !== this._try || this._ended) {
      return;
    }
    if (granted) {
      this._connect();
    } else {
      this._end("This session needs a key.");
    }
  }

  /** @param {number} [least] */
  _wait(least = 0) {
    if (!this._wiring.isOnline()) {
      this._tell({ phase: "offline" });
    }
    const doubled = FIRST_PAUSE * 2 ** Math.min(Math.max(this._failures - 1, 0), 10);
    const pause = Math.max(Math.min(doubled, LONGEST_PAUSE), least);
    // Spread out, or all clients of a server that restarts come back at the same moment.
    const spread = Math.round(pause * (0.75 + 0.5 * this._wiring.random()));
    if (this._wiring.isOnline()) {
      this._tell({ phase: "waiting", until: this._wiring.now() + spread });
    }
    this._timer = this._wiring.setTimer(() => this._connect(), spread);
  }

  _watch() {
    this._wiring.clearTimer(this._watchdog);
    this._watchdog = this._wiring.setTimer(() => {
      this._drop();
      this._failures += 1;
      this._wait();
    }, SILENCE);
  }

  _drop() {
    this._wiring.clearTimer(this._timer);
    this._wiring.clearTimer(this._watchdog);
    this._timer = null;
    this._watchdog = null;
    this._open = false;
    const socket = this._socket;
    this._socket = null;
    socket?.close();
  }

  /** @param {string} reason */
  _end(reason) {
    this._ended = true;
    this._tell({ phase: "ended", reason });
  }

  /** @param {Status} status */
  _tell(status) {
    this._wiring.onStatus(status);
  }
}
