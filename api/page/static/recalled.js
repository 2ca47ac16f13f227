/** What an answer was made from: the note that the server leaves on the user's message. */

/** @typedef {{memories: string[], leftOut: {what: string, why: string, count: number}[]}} Recalled */

/**
 * What was remembered for the answer to a message, or null where nothing is noted.
 * @param {any} message
 * @returns {Recalled | null}
 */
export function recalledFor(message) {
  const note = message?.details?.context;
  if (message?.role !== "user" || typeof note !== "object" || note === null) {
    return null;
  }
  return {
    memories: listOf(note.memories)
      .map((one) => one?.text)
      .filter((text) => typeof text === "string" && text !== "")
      // A day is a line of its own before the first memory of it.
      .map((text) => text.replace("\n- ", " ")),
    leftOut: listOf(note.left_out)
      .filter((one) => typeof one?.what === "string" && one.count > 0)
      .map(({ what, why, count }) => ({ what, why: String(why ?? ""), count })),
  };
}

/**
 * What was left out, in words; "" where nothing was.
 * @param {Recalled} recalled
 */
export function wordsOfLeftOut({ leftOut }) {
  return leftOut
    .filter(({ why }) => why !== "shown")
    .map(({ what, why, count }) => `${count.toLocaleString("en")} ${NAMES[what] ?? what} (${REASONS[why] ?? why})`)
    .join(", ");
}

/** @type {Record<string, string>} */
const NAMES = {
  messages: "older messages",
  memories: "memories",
  memory: "memories",
  soul: "characters of the soul",
  summary: "characters of the summary",
  message: "part of the message",
};

/** @type {Record<string, string>} */
const REASONS = { window: "before what is shown to the model", budget: "no room" };

/** @param {unknown} value @returns {any[]} */
function listOf(value) {
  return Array.isArray(value) ? value : [];
}
