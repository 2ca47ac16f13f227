/** The dialog that asks for an API key. */

import { byId } from "./dom.js";

/**
 * Asks the reader.
 * @param {boolean} refused whether a key was tried and not accepted
 * @returns {Promise<string | null>} null where the reader gave none
 */
export function askForKey(refused) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const field = /** @type {HTMLInputElement} */ (byId("key"));
  byId("key-words").textContent = refused
    ? "The server did not accept this key. Please try another one."
    : "Enter the API key that you were given. It stays in this tab and is forgotten when you close it.";
  field.value = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const listening = new AbortController();
    const { signal } = listening;
    const end = (/** @type {string | null} */ key) => {
      listening.abort();
      dialog.close();
      resolve(key);
    };
    const given = (/** @type {Event} */ event) => {
      event.preventDefault();
      if (field.value.trim() !== "") {
        end(field.value.trim());
      }
    };
    byId("key-form").addEventListener("submit", given, { signal });
    byId("key-cancel").addEventListener("click", () => end(null), { signal });
    dialog.addEventListener("cancel", () => end(null), { signal });
  });
}
