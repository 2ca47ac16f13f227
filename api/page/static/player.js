// Plays a session: text as it streams, choices to click, a line to type.
// Texts are other people's: they only ever become text nodes.

const $ = (id) => document.getElementById(id);
const TERMINAL = new Set(["task_completed", "task_failed", "task_cancelled", "task_dead"]);

/** A request that gives JSON; throws an Error in the problem's own words. */
async function call(path, body) {
  const answer = await fetch(path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.detail || data.title);
  return data;
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

class Game {
  after = 0;
  unfinished = new Map(); // `task:number` -> {node, length} of messages that still grow
  attempts = new Map(); // task -> newest attempt

  constructor(session) {
    this.session = session;
    $("shelf").hidden = true;
    $("play").hidden = false;
    this.connect();
  }

  connect(pause = 250) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const path = `/ws/sessions/${this.session.id}?after=${this.after}`;
    this.socket = new WebSocket(`${scheme}://${location.host}${path}`);
    this.socket.onopen = () => {
      $("connection").textContent = "connected";
      pause = 250;
    };
    this.socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    this.socket.onclose = () => {
      $("connection").textContent = "connecting again ...";
      setTimeout(() => this.connect(Math.min(pause * 2, 5000)), pause);
    };
  }

  take(frame) {
    if (frame.type === "message_update") return this.grow(frame);
    if (frame.type === "error") return tell(frame.error.message);
    if (frame.seq === undefined || frame.seq <= this.after) return undefined;
    this.after = frame.seq;
    const { data, task_id: task } = frame;
    const key = `${task}:${data.number}`;
    if (frame.type === "task_started" || frame.type === "task_restarted") {
      this.attempts.set(task, data.attempt);
      this.drop(task);
    } else if (frame.type === "message_start") {
      this.open(key, data.message.role);
    } else if (frame.type === "message_end") {
      const message = this.unfinished.get(key) ?? this.open(key, data.message.role);
      message.node.textContent = textOf(data.message);
      this.unfinished.delete(key);
    } else if (frame.type === "state_changed") {
      this.offer(data.choices);
    } else if (TERMINAL.has(frame.type)) {
      this.drop(task);
      tell(data.error ? data.error.message : "");
    }
    return undefined;
  }

  /** A delta counts only where the text so far is exactly as long as its offset says. */
  grow({ task_id: task, attempt, message, offset, delta }) {
    const growing = this.unfinished.get(`${task}:${message}`);
    if (!growing || growing.length !== offset || attempt < (this.attempts.get(task) ?? 0)) return;
    growing.node.append(delta);
    growing.length += [...delta].length; // code points, as offsets are
    growing.node.scrollIntoView({ block: "nearest" });
  }

  open(key, role) {
    this.unfinished.get(key)?.node.remove();
    const node = document.createElement("p");
    node.className = role;
    $("transcript").append(node);
    const message = { node, length: 0 };
    this.unfinished.set(key, message);
    return message;
  }

  /** Drop what was begun and never ended: it is told again, or never. */
  drop(task) {
    for (const [key, { node }] of this.unfinished) {
      if (key.startsWith(`${task}:`)) {
        node.remove();
        this.unfinished.delete(key);
      }
    }
  }

  offer(choices) {
    $("choices").replaceChildren(
      ...choices.map(({ id, text }) => {
        const button = document.createElement("button");
        button.textContent = text;
        button.onclick = () => this.act({ type: "choose", choice_id: id });
        return button;
      }),
    );
  }

  act(action) {
    tell("");
    if (this.socket.readyState !== WebSocket.OPEN) return tell("Not connected; try again.");
    return this.socket.send(JSON.stringify({ type: "action", id: crypto.randomUUID(), action }));
  }
}

function textOf({ content }) {
  if (typeof content === "string") return content;
  return content.map((block) => block.text ?? "").join("");
}

let game;
$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) game.act({ type: "say", text });
  $("text").value = "";
};

function shelve(title, description, body) {
  const button = document.createElement("button");
  const name = document.createElement("strong");
  name.textContent = title;
  button.append(name, document.createElement("br"), description);
  button.onclick = async () => {
    try {
      game = new Game(await call("/v1/sessions", body));
    } catch (error) {
      tell(error.message);
    }
  };
  $("shelf").append(button);
}

const { agents } = await call("/v1/agents");
for (const agent of agents) {
  for (const story of agent.stories) {
    shelve(story.title, story.description, { agent: agent.name, story: story.name });
  }
  if (agent.name !== "story") shelve(agent.title, agent.description, { agent: agent.name });
}
