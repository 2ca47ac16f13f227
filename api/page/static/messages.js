/** What a message of the transcript has in it. */

/**
 * The text of a message: its text blocks, joined.
 * @param {any} message
 * @returns {string}
 */
export function textOf(message) {
  const content = message?.content;
  if (typeof content === "string") {
    return content;
  }
  if (!Array.isArray(content)) {
    return "";
  }
  return content
    .filter((block) => block?.type === "text" && typeof block.text === "string")
    .map((block) => block.text)
    .join("");
}

/**
 * The tool calls of a message, by their ids.
 * @param {any} message
 * @returns {Record<string, any>}
 */
export function callsOf(message) {
  /** @type {any[]} */
  const content = Array.isArray(message?.content) ? message.content : [];
  return Object.fromEntries(
    content.filter((block) => block?.type === "tool_call").map((block) => [block.id, block]),
  );
}
