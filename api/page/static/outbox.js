/**
 * Actions on their way, kept in the tab until the server says that it has them.
 *
 * An action that may have been lost is sent again with the same id, also after a reload of the
 * page: the server takes each id once.
 */

/** @typedef {import("./session.js").Pending} Pending */

export class Outbox {
  /**
   * @param {string} sessionId
   * @param {Storage} storage
   */
  constructor(sessionId, storage = sessionStorage) {
    this._key = `fireside:outbox:${sessionId}`;
    this._storage = storage;
  }

  /** @returns {Pending[]} oldest first */
  all() {
    try {
      const kept = JSON.parse(this._storage.getItem(this._key) ?? "[]");
      return Array.isArray(kept) ? kept.filter((one) => one?.id && one?.action) : [];
    } catch {
      return [];
    }
  }

  /** @param {Pending} action */
  add(action) {
    this._keep([...this.all(), action]);
  }

  /**
   * @param {string} id
   * @returns {Pending | undefined} the action, if it was there
   */
  remove(id) {
    const kept = this.all();
    const found = kept.find((one) => one.id === id);
    if (found) {
      this._keep(kept.filter((one) => one.id !== id));
    }
    return found;
  }

  /** @param {Pending[]} actions */
  _keep(actions) {
    try {
      if (actions.length === 0) {
        this._storage.removeItem(this._key);
      } else {
        this._storage.setItem(this._key, JSON.stringify(actions));
      }
    } catch {
      // Storage is full or forbidden: the action is still sent, only a reload would forget it.
    }
  }
}
