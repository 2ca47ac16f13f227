/** What a session has cost, in words, kept up to date as its tasks end. */

/** @typedef {import("./session.js").State} State */
/** @typedef {{calls: number, input: number, output: number, cache_read: number, cache_write: number, unpriced_calls: number, billed_usd: number | null}} Usage */

const SETTLE_MS = 500;

export class Cost {
  /**
   * @param {HTMLElement} line
   * @param {(sessionId: string) => Promise<Usage>} ask
   */
  constructor(line, ask) {
    this._line = line;
    this._ask = ask;
    this._known = "";
    this._timer = 0;
  }

  /** Empties the line for another session. */
  clear() {
    clearTimeout(this._timer);
    this._known = "";
    this._line.hidden = true;
  }

  /**
   * Asks anew where a task has ended since.
   * @param {State} state
   */
  follow(state) {
    const ended = [...state.tasks.values()].filter((task) => task.status === "ended").length;
    const known = `${state.id}:${ended}`;
    if (ended === 0 || known === this._known) {
      return;
    }
    this._known = known;
    clearTimeout(this._timer);
    this._timer = window.setTimeout(() => void this._show(state.id, known), SETTLE_MS);
  }

  /**
   * @param {string} sessionId
   * @param {string} known
   */
  async _show(sessionId, known) {
    const usage = await this._ask(sessionId).catch(() => null);
    if (this._known !== known) {
      return;
    }
    this._line.hidden = usage === null || usage.calls === 0;
    if (usage !== null) {
      this._line.textContent = `This session so far: ${wordsOfUsage(usage)}.`;
    }
  }
}

/**
 * What was used and what it costs.
 * @param {Usage} usage
 * @returns {string}
 */
export function wordsOfUsage(usage) {
  const read = usage.input + usage.cache_read + usage.cache_write;
  const tokens = `${counted(read, "token")} read, ${counted(usage.output, "token")} written`;
  return `${wordsOfMoney(usage)}, ${counted(usage.calls, "call")} of a model, ${tokens}`;
}

/** @param {Usage} usage */
function wordsOfMoney({ billed_usd: usd, calls, unpriced_calls: unpriced }) {
  if (usd === null || (calls > 0 && unpriced === calls)) {
    return "no price is known";
  }
  const money = usd > 0 && usd < 0.0001 ? "less than $0.0001" : `$${usd.toFixed(4)}`;
  return unpriced > 0 ? `${money} and what has no price` : money;
}

/**
 * @param {number} number
 * @param {string} what
 */
function counted(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}
