/** The tab's own storage, or one in memory where the browser allows none. */

/** @typedef {Pick<Storage, "getItem" | "setItem" | "removeItem">} Store */

/** @returns {Store} */
export function tabStorage() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return (memory ??= memoryStore());
  }
}

/** @type {Store | undefined} */
let memory;

/** @returns {Store} */
function memoryStore() {
  /** @type {Map<string, string>} */
  const items = new Map();
  return {
    getItem: (key) => items.get(key) ?? null,
    setItem: (key, value) => void items.set(key, value),
    removeItem: (key) => void items.delete(key),
  };
}
