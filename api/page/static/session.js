/**
 * What a session looks like to its reader, as a pure function of the frames that came.
 *
 * Exactly-once lives here: events count up without a hole and are applied once, deltas are taken
 * only where they fit, and text that an attempt did not finish is dropped. Nothing here knows the
 * network or the DOM.
 */

import { checkOf, dieOf } from "./dice.js";
import { callsOf, textOf } from "./messages.js";
import { codePoints, skipCodePoints } from "./prose.js";
import { recalledFor } from "./recalled.js";

/** @typedef {import("./dice.js").Check} Check */
/** @typedef {import("./dice.js").Die} Die */
/** @typedef {import("./recalled.js").Recalled} Recalled */
/** @typedef {{number: number, role: string, text: string, die: Die | null, recalled: Recalled | null}} Message */
/** @typedef {{number: number, text: string, length: number}} OpenMessage `length` in code points */
/** @typedef {{id: string, text: string, tags?: string[]}} Choice */
/** @typedef {{type: string, text?: string, choice_id?: string}} Action */
/** @typedef {{id: string, action: Action, text: string}} Pending `text` is what its reader sees */
/** @typedef {{tone: "problem" | "quiet", text: string}} Note */

/**
 * @typedef {object} Task
 * @property {string} id
 * @property {number} attempt
 * @property {"queued" | "running" | "ended"} status
 * @property {boolean} settled its messages are those of the transcript that was read
 * @property {Action | null} action
 * @property {string} said what the user did, in words, until the transcript has it
 * @property {string | null} actionId the sender's own id of the action
 * @property {Message[]} messages
 * @property {OpenMessage | null} open
 * @property {Record<string, any>} calls
 * @property {string | null} activity the tool that is running
 * @property {Check | null} check
 * @property {Note | null} note
 */

/**
 * @typedef {object} State
 * @property {string} id
 * @property {string} agent
 * @property {string | null} story
 * @property {string} title
 * @property {number} seq the newest event that was applied
 * @property {Map<string, Task>} tasks in the order in which they run
 * @property {Pending[]} pending sent or to be sent, not yet accepted
 * @property {Record<string, any>} shared the state that a client may see
 * @property {Choice[]} choices
 * @property {boolean} reload the transcript must be read anew
 */

/** @typedef {{session: any, messages: any[], events: any[], after: number}} Snapshot */

const MESSAGE_EVENTS = new Set([
  "message_end",
  "tool_execution_start",
  "tool_execution_end",
  "task_started",
  "task_restarted",
]);

/**
 * The state that a snapshot gives: the transcript, and the events of the newest tasks.
 * @param {Snapshot} snapshot `events` are those above `after`, without a hole
 * @param {Pending[]} pending
 * @returns {State}
 */
export function begin({ session, messages, events, after }, pending = []) {
  /** @type {State} */
  const empty = {
    id: session.id,
    agent: session.agent,
    story: session.story ?? null,
    title: session.title ?? "",
    seq: after,
    tasks: transcript(messages),
    pending,
    shared: session.state ?? {},
    choices: session.choices ?? [],
    reload: false,
  };
  return events.reduce(apply, empty);
}

/**
 * The state after a frame.
 * @param {State} state
 * @param {any} frame an event, a delta, an ack, an error or a gap; others change nothing
 * @returns {State}
 */
export function apply(state, frame) {
  if (Number.isInteger(frame.seq)) {
    return applyEvent(state, frame);
  }
  switch (frame.type) {
    case "message_update":
      return applyDelta(state, frame);
    case "ack":
      return accepted(state, frame);
    case "error":
      return { ...state, pending: state.pending.filter((one) => one.id !== frame.id) };
    case "gap":
      return { ...state, reload: true };
    default:
      return state;
  }
}

/**
 * The state with an action that is on its way.
 * @param {State} state
 * @param {Pending} action
 * @returns {State}
 */
export function send(state, action) {
  return { ...state, pending: [...state.pending, action] };
}

/**
 * Whether something is under way, and what: the task or action to cancel.
 * @param {State} state
 * @returns {{taskId: string | null, actionId: string | null, activity: string | null, writing: boolean} | null}
 */
export function underWay(state) {
  const tasks = [...state.tasks.values()].filter((task) => task.status !== "ended");
  const task = tasks.find((one) => one.status === "running") ?? tasks[0];
  if (task) {
    const { id: taskId, actionId, activity, open } = task;
    return { taskId, actionId, activity, writing: (open?.length ?? 0) > 0 };
  }
  const first = state.pending[0];
  return first ? { taskId: null, actionId: first.id, activity: null, writing: false } : null;
}

// -- from the transcript ---------------------------------------------------------------------

/**
 * @param {any[]} entries
 * @returns {Map<string, Task>}
 */
function transcript(entries) {
  /** @type {Map<string, Task>} */
  const tasks = new Map();
  for (const { task_id: id, message } of entries) {
    const task = tasks.get(id) ?? { ...newTask(id), status: "ended", settled: true };
    tasks.set(id, withMessage(task, message, task.messages.length));
  }
  return tasks;
}

/**
 * @param {string} id
 * @returns {Task}
 */
function newTask(id) {
  return {
    id,
    attempt: 0,
    status: "queued",
    settled: false,
    action: null,
    said: "",
    actionId: null,
    messages: [],
    open: null,
    calls: {},
    activity: null,
    check: null,
    note: null,
  };
}

/**
 * @param {Task} task
 * @param {any} message
 * @param {number} number
 * @returns {Task}
 */
function withMessage(task, message, number) {
  const calls = { ...task.calls, ...callsOf(message) };
  const die =
    message.role === "tool_result" ? dieOf(message, calls[message.tool_call_id]) : null;
  const recalled = recalledFor(message);
  const added = { number, role: String(message.role), text: textOf(message), die, recalled };
  const kept = task.open && task.open.number > number ? task.open : null;
  return { ...task, calls, open: kept, messages: [...task.messages, added] };
}

// -- events ----------------------------------------------------------------------------------

/**
 * @param {State} state
 * @param {any} event
 * @returns {State}
 */
function applyEvent(state, event) {
  if (event.seq <= state.seq) {
    return state;
  }
  if (event.seq > state.seq + 1) {
    return { ...state, reload: true }; // a hole that nobody announced
  }
  const next = { ...state, seq: event.seq };
  const data = event.data ?? {};
  if (event.type === "state_changed") {
    return withShared(next, data);
  }
  if (!event.task_id) {
    return next;
  }
  const task = state.tasks.get(event.task_id) ?? newTask(event.task_id);
  if (task.settled && MESSAGE_EVENTS.has(event.type)) {
    // The transcript has nothing of a task that told nothing: the log says between which it stands.
    return event.type === "task_started" ? inOrder(next, task) : next;
  }
  return applyToTask(next, task, event.type, data);
}

/**
 * @param {State} state
 * @param {Task} task
 * @param {string} type
 * @param {any} data
 * @returns {State}
 */
function applyToTask(state, task, type, data) {
  switch (type) {
    case "task_queued":
      return queued(state, task, data);
    case "task_started":
    case "task_restarted":
      return started(state, task, data);
    case "message_end":
      return withTask(state, withMessage(task, data.message ?? {}, numberOf(task, data)));
    case "tool_execution_start":
      return withTask(state, { ...task, activity: String(data.tool_name ?? "") });
    case "tool_execution_end":
      return withTask(state, { ...task, activity: null });
    case "task_completed":
      return completed(state, task, data.result ?? {});
    case "task_failed":
    case "task_dead":
      return ended(state, task, { tone: "problem", text: wordsOf(data.error) });
    case "task_cancelled":
      return ended(state, task, { tone: "quiet", text: "Stopped." });
    default:
      return state;
  }
}

/**
 * @param {State} state
 * @param {Task} task
 * @param {any} data
 */
function queued(state, task, data) {
  const actionId = data.client_action_id ?? task.actionId;
  const sent = state.pending.find((one) => one.id === actionId);
  const action = data.action ?? task.action;
  const said = sent?.text || task.said || saidBy(state, action);
  const rest = state.pending.filter((one) => one !== sent);
  return withTask({ ...state, pending: rest }, { ...task, action, actionId, said });
}

/**
 * @param {State} state
 * @param {any} action
 */
function saidBy(state, action) {
  if (action?.type === "say") {
    return String(action.text ?? "");
  }
  if (action?.type === "choose") {
    return state.choices.find((choice) => choice.id === action.choice_id)?.text ?? "";
  }
  return "";
}

/**
 * @param {State} state
 * @param {Task} task
 * @param {any} data
 */
function started(state, task, data) {
  const attempt = Number.isInteger(data.attempt) ? data.attempt : task.attempt + 1;
  /** @type {Task} */
  const running = { ...task, status: "running", attempt, activity: null };
  if (attempt > task.attempt) {
    running.open = null; // what an earlier attempt had not finished
  }
  return inOrder(withTask(state, running), task);
}

/**
 * Tasks that run stand before those that wait: an interrupt overtakes.
 * @param {State} state
 * @param {Task} before the task before it started
 */
function inOrder(state, before) {
  if (before.status !== "queued" && !before.settled) {
    return state;
  }
  const tasks = [...state.tasks.values()];
  const waiting = tasks.filter((task) => task.status === "queued");
  const others = tasks.filter((task) => task.status !== "queued" && task.id !== before.id);
  const starting = tasks.filter((task) => task.id === before.id);
  const ordered = [...others, ...starting, ...waiting];
  return { ...state, tasks: new Map(ordered.map((task) => [task.id, task])) };
}

/**
 * @param {State} state
 * @param {Task} task
 * @param {any} result
 */
function completed(state, task, result) {
  const done = { ...task, check: checkOf(result) };
  const ids = result.joined ? null : result.messages;
  // What the log told and what the transcript has differ: a verb changed the branch.
  const differs = Array.isArray(ids) && !task.settled && ids.length !== task.messages.length;
  const next = ended(withShared(state, result), done, null);
  return differs ? { ...next, reload: true } : next;
}

/**
 * @param {State} state
 * @param {Task} task
 * @param {Note | null} note
 */
function ended(state, task, note) {
  return withTask(state, { ...task, status: "ended", open: null, activity: null, note });
}

/**
 * @param {State} state
 * @param {any} data
 * @returns {State}
 */
function withShared(state, data) {
  return {
    ...state,
    shared: data.state ?? state.shared,
    choices: Array.isArray(data.choices) ? data.choices : state.choices,
  };
}

/**
 * @param {State} state
 * @param {Task} task
 * @returns {State}
 */
function withTask(state, task) {
  return { ...state, tasks: new Map(state.tasks).set(task.id, task) };
}

/**
 * @param {Task} task
 * @param {any} data
 */
function numberOf(task, data) {
  return Number.isInteger(data.number) ? data.number : nextNumber(task);
}

/** @param {Task} task */
function nextNumber(task) {
  return (task.messages.at(-1)?.number ?? -1) + 1;
}

/** @param {any} error */
function wordsOf(error) {
  return String(error?.message ?? "") || "Something went wrong.";
}

// -- what the sender hears -------------------------------------------------------------------

/**
 * @param {State} state
 * @param {any} ack
 * @returns {State}
 */
function accepted(state, ack) {
  const sent = state.pending.find((one) => one.id === ack.id);
  if (!sent) {
    return state;
  }
  const next = { ...state, pending: state.pending.filter((one) => one !== sent) };
  const open = ack.status === "queued" || ack.status === "running";
  if (!open || state.tasks.has(ack.task_id)) {
    return next;
  }
  const { action, text: said } = sent;
  return withTask(next, { ...newTask(ack.task_id), action, said, actionId: ack.id });
}

// -- deltas ----------------------------------------------------------------------------------

/**
 * @param {State} state
 * @param {any} delta
 * @returns {State}
 */
function applyDelta(state, { task_id: id, attempt, message: number, offset, delta }) {
  const task = state.tasks.get(id);
  if (!task || task.status === "ended" || attempt < task.attempt || typeof delta !== "string") {
    return state;
  }
  if (number < nextNumber(task)) {
    return state; // the message is finished
  }
  const known = attempt === task.attempt && task.open?.number === number ? task.open : null;
  const open = appended(known ?? { number, text: "", length: 0 }, offset, delta);
  if (open === null || (task.open && attempt === task.attempt && number < task.open.number)) {
    return state;
  }
  return withTask(state, { ...task, attempt, open });
}

/**
 * The message with a delta, or null where it does not fit or brings nothing new.
 * @param {OpenMessage} open
 * @param {number} offset in code points
 * @param {string} delta
 * @returns {OpenMessage | null}
 */
function appended(open, offset, delta) {
  const held = open.length - offset; // how much of the delta is there already
  const size = codePoints(delta);
  if (held < 0 || held >= size) {
    return null;
  }
  const fresh = skipCodePoints(delta, held);
  const overlap = delta.slice(0, delta.length - fresh.length);
  if (!open.text.endsWith(overlap)) {
    return null;
  }
  return { ...open, text: open.text + fresh, length: open.length + size - held };
}
