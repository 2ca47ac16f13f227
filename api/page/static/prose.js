/**
 * The light formatting of story text: paragraphs, emphasis, strong emphasis.
 *
 * Text is untrusted. Here it only becomes data; whoever shows it builds text nodes from that.
 */

/** @typedef {{text: string, mark: "plain" | "em" | "strong"}} Span */

const MARKS = /\*\*([^\s*](?:[^*]*[^\s*])?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*|_([^\s_](?:[^_]*[^\s_])?)_/gu;
const WORD = /[\p{L}\p{N}_]/u;

/**
 * The paragraphs of a text: its lines without the empty ones.
 * @param {string} text
 * @returns {string[]}
 */
export function paragraphs(text) {
  return text
    .split(/\r?\n|\r/)
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

/**
 * A paragraph cut into plain and emphasised pieces. A mark that is never closed stays as it is.
 * @param {string} paragraph
 * @returns {Span[]}
 */
export function spans(paragraph) {
  /** @type {Span[]} */
  const found = [];
  let end = 0;
  for (const match of paragraph.matchAll(MARKS)) {
    const [whole, strong, starred, underscored] = match;
    if (underscored !== undefined && touchesWord(paragraph, match.index, whole.length)) {
      continue; // some_file_name is no emphasis
    }
    if (match.index > end) {
      found.push({ text: paragraph.slice(end, match.index), mark: "plain" });
    }
    found.push(
      strong !== undefined
        ? { text: strong, mark: "strong" }
        : { text: starred ?? underscored, mark: "em" },
    );
    end = match.index + whole.length;
  }
  if (end < paragraph.length) {
    found.push({ text: paragraph.slice(end), mark: "plain" });
  }
  return found;
}

/**
 * A text as a reader sees it: paragraphs on lines of their own, without marks.
 * @param {string} text
 * @returns {string}
 */
export function plain(text) {
  return paragraphs(text)
    .map((paragraph) => spans(paragraph).map((span) => span.text).join(""))
    .join("\n");
}

/**
 * How many Unicode code points a text has; JavaScript's `length` counts UTF-16 units.
 * @param {string} text
 * @returns {number}
 */
export function codePoints(text) {
  let count = 0;
  for (const _ of text) {
    count += 1;
  }
  return count;
}

/**
 * A text without its first `count` code points.
 * @param {string} text
 * @param {number} count
 * @returns {string}
 */
export function skipCodePoints(text, count) {
  let units = 0;
  let left = count;
  for (const point of text) {
    if (left === 0) {
      break;
    }
    left -= 1;
    units += point.length;
  }
  return text.slice(units);
}

/**
 * @param {string} text
 * @param {number} start
 * @param {number} length
 */
function touchesWord(text, start, length) {
  const before = text.slice(Math.max(0, start - 2), start);
  const after = text.slice(start + length, start + length + 2);
  return WORD.test([...before].pop() ?? "") || WORD.test([...after].shift() ?? "");
}
