/** Frames of the contract, made short for the tests. */

export const SESSION = "6f4a1f8e-0000-4000-8000-000000000001";

/** @param {Partial<any>} [session] */
export function snapshot(session = {}, messages = [], events = []) {
  const whole = {
    id: SESSION,
    agent: "story",
    story: "night-ferry",
    title: "",
    status: "idle",
    head_seq: 0,
    first_seq: 1,
    state: {},
    choices: [],
    ...session,
  };
  const after = events.length > 0 ? events[0].seq - 1 : whole.head_seq;
  return { session: whole, messages, events, after };
}

/** A log that numbers its events. */
export class Log {
  constructor(after = 0) {
    this.seq = after;
    this.events = [];
  }

  event(task, type, data = {}) {
    this.seq += 1;
    const frame = { seq: this.seq, type, task_id: task, at: "2026-01-01T00:00:00Z", data };
    this.events.push(frame);
    return frame;
  }

  queued(task, text, id = null) {
    const data = { action: { type: "say", text }, client_action_id: id, position: 0 };
    return this.event(task, "task_queued", data);
  }

  started(task, attempt = 1) {
    const type = attempt === 1 ? "task_started" : "task_restarted";
    return this.event(task, type, { attempt });
  }

  ended(task, number, message) {
    return this.event(task, "message_end", { message, number });
  }

  completed(task, messages, more = {}) {
    return this.event(task, "task_completed", { result: { messages, ...more } });
  }
}

export function user(text) {
  return { role: "user", content: text };
}

export function assistant(text) {
  return { role: "assistant", content: [{ type: "text", text }] };
}

export function delta(task, offset, text, { attempt = 1, message = 1 } = {}) {
  return { type: "message_update", task_id: task, attempt, message, offset, delta: text };
}
