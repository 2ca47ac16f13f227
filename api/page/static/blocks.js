/** What is to be shown of a session's state, from top to bottom: passages, deeds, dice, notes. */

/** @typedef {import("./session.js").State} State */
/** @typedef {import("./session.js").Task} Task */
/** @typedef {import("./session.js").Message} Message */
/** @typedef {import("./session.js").Action} Action */
/** @typedef {import("./session.js").Note} Note */
/** @typedef {import("./dice.js").Check} Check */
/** @typedef {import("./dice.js").Die} Die */

/** @typedef {{key: string, kind: "message", role: string, text: string, open: boolean, ghost: boolean}} TextBlock */
/** @typedef {{key: string, kind: "check", check: Check}} CheckBlock */
/** @typedef {{key: string, kind: "die", die: Die}} DieBlock */
/** @typedef {{key: string, kind: "note", note: Note, again: Action | null, said: string}} NoteBlock */
/** @typedef {{key: string, kind: "why", taskId: string, recalled: import("./recalled.js").Recalled}} WhyBlock */
/** @typedef {TextBlock | CheckBlock | DieBlock | NoteBlock | WhyBlock} Block */

/**
 * What is to be shown, from top to bottom.
 * @param {State} state
 * @returns {Block[]}
 */
export function blocks(state) {
  const tasks = [...state.tasks.values()];
  const last = state.pending.length === 0 ? tasks.at(-1) : null;
  const shown = tasks.flatMap((task) => blocksOf(task, task === last));
  const ghosts = state.pending
    .filter((one) => one.text !== "")
    .map((one) => ghost(`pending:${one.id}`, one.text));
  return [...shown, ...ghosts];
}

/**
 * The transcript as far as it is finished: who said what.
 * @param {State} state
 * @returns {{role: string, text: string}[]}
 */
export function finished(state) {
  return [...state.tasks.values()]
    .flatMap((task) => task.messages)
    .filter(isShown)
    .map(({ role, text }) => ({ role, text }));
}

/**
 * @param {Task} task
 * @param {boolean} last
 * @returns {Block[]}
 */
function blocksOf(task, last) {
  const said = task.messages.some((message) => message.role === "user");
  const waits = task.status !== "ended" && !said && task.said !== "";
  /** @type {Block[]} */
  const shown = waits ? [ghost(`${task.id}:said`, task.said)] : [];
  let check = task.check;
  for (const message of task.messages) {
    if (check && message.role === "assistant") {
      shown.push({ key: `${task.id}:check`, kind: "check", check });
      check = null;
    }
    shown.push(...blocksOfMessage(task, message));
  }
  if (check) {
    shown.push({ key: `${task.id}:check`, kind: "check", check });
  }
  if (task.open && task.open.text !== "") {
    const { number, text } = task.open;
    shown.push({ ...textBlock(`${task.id}:${number}`, "assistant", text), open: true });
  }
  const recalled = task.messages.find((message) => message.recalled !== null)?.recalled;
  if (recalled && task.status === "ended" && isAnswered(task)) {
    shown.push({ key: `${task.id}:why`, kind: "why", taskId: task.id, recalled });
  }
  if (task.note && last) {
    const again = task.note.tone === "problem" ? task.action : null;
    shown.push({ key: `${task.id}:note`, kind: "note", note: task.note, again, said: task.said });
  }
  return shown;
}

/** @param {Task} task */
function isAnswered(task) {
  return task.messages.some((message) => message.role === "assistant" && isShown(message));
}

/**
 * @param {Task} task
 * @param {Message} message
 * @returns {Block[]}
 */
function blocksOfMessage(task, message) {
  const key = `${task.id}:${message.number}`;
  if (message.die) {
    return [{ key, kind: "die", die: message.die }];
  }
  return isShown(message) ? [textBlock(key, message.role, message.text)] : [];
}

/** @param {Message} message */
function isShown({ role, text }) {
  return (role === "user" || role === "assistant") && text.trim() !== "";
}

/**
 * @param {string} key
 * @param {string} role
 * @param {string} text
 * @returns {TextBlock}
 */
function textBlock(key, role, text) {
  return { key, kind: "message", role, text, open: false, ghost: false };
}

/**
 * @param {string} key
 * @param {string} text
 * @returns {TextBlock}
 */
function ghost(key, text) {
  return { ...textBlock(key, "user", text), ghost: true };
}
