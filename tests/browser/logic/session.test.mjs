import assert from "node:assert/strict";
import { test } from "node:test";

import { blocks, finished } from "../../../api/page/static/blocks.js";
import { apply, begin, send, underWay } from "../../../api/page/static/session.js";
import { Log, assistant, delta, snapshot, user } from "./frames.mjs";

const play = (state, ...frames) => frames.reduce(apply, state);
const open = (state) => blocks(state).find((block) => block.open)?.text;
const texts = (state) => blocks(state).map((block) => block.text ?? block.kind);

/** A task that runs and has told what the user said. */
function running(log = new Log(), task = "a") {
  const frames = [log.queued(task, "Hello?"), log.started(task), log.ended(task, 0, user("Hello?"))];
  return play(begin(snapshot()), ...frames);
}

test("a whole task becomes the transcript", () => {
  const log = new Log();
  const state = play(
    running(log),
    delta("a", 0, "Good "),
    delta("a", 5, "evening."),
    log.ended("a", 1, assistant("Good evening.")),
    log.event("a", "state_changed", { state: { variables: { wits: 2 } }, choices: [{ id: "x" }] }),
    log.completed("a", [0, 1], { state: { variables: { wits: 2 } }, choices: [{ id: "x" }] }),
  );

  assert.deepEqual(finished(state), [
    { role: "user", text: "Hello?" },
    { role: "assistant", text: "Good evening." },
  ]);
  assert.deepEqual(texts(state), ["Hello?", "Good evening."]);
  assert.deepEqual(state.shared, { variables: { wits: 2 } });
  assert.deepEqual(state.choices, [{ id: "x" }]);
  assert.equal(underWay(state), null);
  assert.equal(state.reload, false);
});

test("an event that comes twice is applied once", () => {
  const log = new Log();
  const state = running(log);
  const end = log.ended("a", 1, assistant("Once."));

  const twice = play(state, end, end, ...log.events);

  assert.deepEqual(finished(twice).map(({ text }) => text), ["Hello?", "Once."]);
  assert.equal(twice.seq, log.seq);
});

test("a hole in the numbers asks for a reload and applies nothing behind it", () => {
  const log = new Log();
  const state = running(log);
  log.ended("a", 1, assistant("Lost."));
  const late = log.ended("a", 2, assistant("Late."));

  const next = apply(state, late);

  assert.equal(next.reload, true);
  assert.equal(next.seq, state.seq);
  assert.deepEqual(finished(next), finished(state));
});

test("a gap asks for a reload", () => {
  assert.equal(apply(running(), { type: "gap", from: 4, to: 9 }).reload, true);
});

test("deltas are taken only where they fit", () => {
  const state = play(running(), delta("a", 0, "abc"), delta("a", 5, "fgh"));
  assert.equal(open(state), "abc");

  const whole = play(state, delta("a", 3, "de"), delta("a", 5, "fgh"));
  assert.equal(open(whole), "abcdefgh");
});

test("a delta that overlaps brings only what is new", () => {
  const state = play(running(), delta("a", 0, "abc"));

  assert.equal(open(play(state, delta("a", 0, "abc"))), "abc");
  assert.equal(open(play(state, delta("a", 0, "abcdef"))), "abcdef");
  assert.equal(open(play(state, delta("a", 1, "bcd"))), "abcd");
  assert.equal(open(play(state, delta("a", 0, "xyz!"))), "abc");
});

test("offsets count code points, not UTF-16 units", () => {
  const state = play(
    running(),
    delta("a", 0, "\u{1F30A}\u{1F30A}"), // two points, four units
    delta("a", 2, "na\u00efve "),
    delta("a", 8, "\u{1F9CF}\u200D\u2640"),
    delta("a", 11, "!"),
    delta("a", 4, "wrong"),
  );

  assert.equal(open(state), "\u{1F30A}\u{1F30A}na\u00efve \u{1F9CF}\u200D\u2640!");
  const again = play(running(), delta("a", 0, "\u{1F30A}a"), delta("a", 0, "\u{1F30A}a\u{1F30A}b"));
  assert.equal(open(again), "\u{1F30A}a\u{1F30A}b");
});

test("a restart drops what was not finished and keeps what was", () => {
  const log = new Log();
  const state = play(
    running(log),
    log.ended("a", 1, assistant("First, finished.")),
    delta("a", 0, "Second, unfin", { message: 2 }),
    log.started("a", 2),
  );
  assert.deepEqual(texts(state), ["Hello?", "First, finished."]);

  const end = play(
    state,
    delta("a", 13, "ished", { message: 2, attempt: 1 }),
    delta("a", 0, "Another ", { message: 2, attempt: 2 }),
    delta("a", 8, "second", { message: 2, attempt: 2 }),
  );
  assert.equal(open(end), "Another second");
});

test("deltas that overtake their restart are taken, and the restart does not drop them", () => {
  const log = new Log();
  const state = play(running(log), delta("a", 0, "Old text"), delta("a", 0, "New", { attempt: 2 }));
  assert.equal(open(state), "New");

  assert.equal(open(play(state, log.started("a", 2))), "New");
  assert.equal(open(play(state, delta("a", 8, " tail", { attempt: 1 }))), "New");
});

test("after a restart, nothing of an earlier attempt begins anew", () => {
  const log = new Log();
  const state = play(running(log), log.started("a", 2), delta("a", 0, "Stale", { attempt: 1 }));

  assert.equal(open(state), undefined);
});

test("a delta that was told before leaves the place of the next one as it was", () => {
  const state = play(running(), delta("a", 0, "abab"), delta("a", 0, "ab"), delta("a", 4, "c"));

  assert.equal(open(state), "ababc");
});

test("a delta of a message before the one that is open changes nothing", () => {
  const state = play(running(), delta("a", 0, "Third", { message: 2 }), delta("a", 0, "Second"));

  assert.equal(open(state), "Third");
});

test("deltas of finished messages and of ended or unknown tasks change nothing", () => {
  const log = new Log();
  const state = play(running(log), log.ended("a", 1, assistant("Done.")), delta("a", 0, "Done."));
  assert.equal(open(state), undefined);

  const over = play(state, log.completed("a", [0, 1]), delta("a", 0, "ghost", { message: 2 }));
  assert.equal(open(over), undefined);
  assert.equal(open(play(state, delta("nobody", 0, "ghost", { message: 0 }))), undefined);
});

test("the end of a message replaces what had been streamed of it", () => {
  const log = new Log();
  const state = play(running(log), delta("a", 0, "Goo"), log.ended("a", 1, assistant("Good!")));

  assert.deepEqual(texts(state), ["Hello?", "Good!"]);
});

test("a message without deltas, and one without a number, are taken in their order", () => {
  const log = new Log();
  const state = play(
    running(log),
    log.event("a", "message_end", { message: assistant("Unnumbered.") }),
    delta("a", 0, "Third", { message: 2 }),
  );

  assert.deepEqual(texts(state), ["Hello?", "Unnumbered.", "Third"]);
});

test("what is sent is shown at once, and once", () => {
  const log = new Log();
  const sent = send(begin(snapshot()), { id: "k", action: { type: "say", text: "Hi" }, text: "Hi" });
  assert.deepEqual(texts(sent), ["Hi"]);
  assert.deepEqual(underWay(sent)?.actionId, "k");

  const acked = apply(sent, { type: "ack", id: "k", task_id: "a", status: "queued" });
  assert.deepEqual(texts(acked), ["Hi"]);
  const told = play(acked, log.queued("a", "Hi", "k"), log.started("a"), log.ended("a", 0, user("Hi")));
  assert.deepEqual(texts(told), ["Hi"]);
});

test("the ack may come after the events, or after the end", () => {
  const log = new Log();
  const ack = { type: "ack", id: "k", task_id: "a", status: "queued" };
  const sent = send(begin(snapshot()), { id: "k", action: { type: "say", text: "Hi" }, text: "Hi" });
  const told = play(sent, log.queued("a", "Hi", "k"));
  assert.deepEqual(texts(told), ["Hi"]);
  assert.deepEqual(texts(apply(told, ack)), ["Hi"]);

  const over = play(told, log.started("a"), log.ended("a", 0, user("Hi")), log.completed("a", [0]), ack);
  assert.deepEqual(texts(over), ["Hi"]);
  assert.equal(underWay(over), null);
});

test("an ack of a task that is over leaves nothing under way", () => {
  const sent = send(begin(snapshot()), { id: "k", action: { type: "say", text: "Hi" }, text: "Hi" });
  const state = apply(sent, { type: "ack", id: "k", task_id: "a", status: "completed" });

  assert.equal(underWay(state), null);
});

test("an ack of a task that is known already leaves it as it is", () => {
  const log = new Log();
  const sent = send(begin(snapshot()), { id: "k", action: { type: "say", text: "Hi" }, text: "Hi" });
  const told = play(sent, log.queued("a", "Hi"), log.started("a"), log.ended("a", 0, user("Hi")));

  const acked = apply(told, { type: "ack", id: "k", task_id: "a", status: "queued" });
  assert.deepEqual(texts(acked), ["Hi"]);
  assert.deepEqual(finished(acked), [{ role: "user", text: "Hi" }]);
});

test("a task that dies in the middle of a message leaves no half of it", () => {
  const log = new Log();
  const error = { code: "dead", message: "Given up." };
  const state = play(running(log), delta("a", 0, "Half"), log.event("a", "task_dead", { error }));

  assert.deepEqual(texts(state), ["Hello?", "note"]);
});

test("a refused action is taken back", () => {
  const sent = send(begin(snapshot()), { id: "k", action: { type: "say", text: "Hi" }, text: "Hi" });
  const state = apply(sent, { type: "error", id: "k", error: { code: "session_busy" } });

  assert.deepEqual(blocks(state), []);
});

test("a choice from elsewhere is shown in its words while it waits", () => {
  const log = new Log();
  const state = begin(snapshot({ choices: [{ id: "x", text: "Open the door" }] }));
  const action = { type: "choose", choice_id: "x" };

  assert.deepEqual(texts(apply(state, log.event("a", "task_queued", { action }))), ["Open the door"]);
});

test("tasks stand in the order in which they run: an interrupt overtakes", () => {
  const log = new Log();
  const state = play(
    begin(snapshot()),
    log.queued("a", "first"),
    log.started("a"),
    log.ended("a", 0, user("first")),
    log.queued("b", "second"),
    log.queued("c", "interrupt"),
    log.event("a", "task_cancelled"),
    log.started("c"),
    log.ended("c", 0, user("interrupt")),
    log.completed("c", [1]),
    log.started("b"),
  );

  assert.deepEqual(texts(state), ["first", "interrupt", "second"]);
});

test("a task that another one answered leaves nothing of its own", () => {
  const log = new Log();
  const state = play(
    running(log),
    log.queued("b", "Also this", "k"),
    log.ended("a", 1, user("Also this")),
    log.ended("a", 2, assistant("Both.")),
    log.event("b", "task_completed", { result: { joined: "a", messages: [0, 1, 2] } }),
    log.completed("a", [0, 1, 2]),
  );

  assert.deepEqual(texts(state), ["Hello?", "Also this", "Both."]);
  assert.equal(state.reload, false);
});

test("a failure is told in words, until something else is done", () => {
  const log = new Log();
  const error = { code: "model_failed", message: "The model is away." };
  const state = play(running(log), log.event("a", "task_failed", { error }));
  const note = blocks(state).at(-1);
  assert.deepEqual(note.note, { tone: "problem", text: "The model is away." });
  assert.deepEqual(note.again, { type: "say", text: "Hello?" });

  assert.deepEqual(texts(apply(state, log.queued("b", "Again"))), ["Hello?", "Again"]);

  // While it is on its way, which is long without a connection, it can't be tried once more.
  const again = { id: "k", action: note.again, text: note.said };
  assert.deepEqual(texts(send(state, again)), ["Hello?", "Hello?"]);
  assert.deepEqual(texts(apply(send(state, again), { type: "error", id: "k" })), ["Hello?", "note"]);
});

test("a cancelled task keeps what it finished", () => {
  const log = new Log();
  const state = play(
    running(log),
    delta("a", 0, "Half a sen"),
    log.ended("a", 1, assistant("Half a sen")),
    log.event("a", "task_cancelled"),
  );

  assert.deepEqual(texts(state), ["Hello?", "Half a sen", "note"]);
  assert.equal(underWay(state), null);
});

test("a result that disagrees with what was told asks for a reload", () => {
  const log = new Log();
  assert.equal(play(running(log), log.completed("a", [0, 1, 2])).reload, true);
});

test("dice: a check stands between deed and telling, a thrown die where it fell", () => {
  const log = new Log();
  const check = { stat: "wits", dc: 12, roll: 14, total: 16, success: true };
  const told = play(
    running(log),
    log.ended("a", 1, assistant("You see it.")),
    log.completed("a", [0, 1], { decision: { check } }),
  );
  assert.deepEqual(blocks(told).map(({ kind }) => kind), ["message", "check", "message"]);
  assert.deepEqual(blocks(told)[1].check, check);

  const call = { type: "tool_call", id: "t", name: "roll_dice", arguments: { sides: 20 } };
  const result = { role: "tool_result", tool_call_id: "t", tool_name: "roll_dice" };
  const other = new Log();
  const thrown = play(
    running(other),
    other.ended("a", 1, { role: "assistant", content: [call] }),
    other.ended("a", 2, { ...result, content: [{ type: "text", text: "17" }] }),
    other.ended("a", 3, assistant("Seventeen!")),
  );
  assert.deepEqual(blocks(thrown)[1].die, { value: 17, sides: 20 });
  assert.deepEqual(texts(thrown), ["Hello?", "die", "Seventeen!"]);
});

test("a snapshot: the transcript is not told again by the events of its tasks", () => {
  const log = new Log(40);
  const events = [
    log.started("a"),
    log.ended("a", 0, user("Hello?")),
    log.ended("a", 1, assistant("Good evening.")),
    log.completed("a", [0, 1], { decision: { check: { stat: "", dc: 5, roll: 9 } } }),
    log.queued("b", "And now?"),
    log.started("b"),
    log.ended("b", 0, user("And now?")),
  ];
  const messages = [
    { task_id: "a", message: user("Hello?") },
    { task_id: "a", message: assistant("Good evening.") },
  ];
  const state = begin(snapshot({ head_seq: 47, status: "running" }, messages, events));

  assert.deepEqual(texts(state), ["Hello?", "check", "Good evening.", "And now?"]);
  assert.equal(state.seq, 47);
  assert.equal(underWay(state)?.taskId, "b");
});

test("a snapshot: a task that told nothing stands where it ran, not behind what came after it", () => {
  const log = new Log(40);
  const error = { code: "choice_not_found", message: "this choice is not open" };
  const events = [
    log.queued("a", "Hello?"),
    log.started("a"),
    log.completed("a", [0]),
    log.queued("b", "Take it"),
    log.started("b"),
    log.event("b", "task_failed", { error }),
    log.queued("c", "And now?"),
    log.started("c"),
    log.completed("c", [1]),
  ];
  const messages = [
    { task_id: "a", message: user("Hello?") },
    { task_id: "c", message: user("And now?") },
  ];

  const later = begin(snapshot({ head_seq: 49 }, messages, events));
  assert.deepEqual([...later.tasks.keys()], ["a", "b", "c"]);
  assert.deepEqual(texts(later), ["Hello?", "And now?"]);

  const then = begin(snapshot({ head_seq: 46 }, messages.slice(0, 1), events.slice(0, 6)));
  assert.deepEqual(texts(then), ["Hello?", "note"]);
});

test("a snapshot: what failed can be tried again", () => {
  const log = new Log(40);
  const error = { code: "model_failed", message: "The model is away." };
  const events = [
    log.queued("a", "Hello?"),
    log.started("a"),
    log.ended("a", 0, user("Hello?")),
    log.event("a", "task_failed", { error }),
  ];
  const messages = [{ task_id: "a", message: user("Hello?") }];

  const shown = blocks(begin(snapshot({ head_seq: 44 }, messages, events)));

  assert.deepEqual(shown.map((block) => block.text ?? block.kind), ["Hello?", "note"]);
  assert.deepEqual(shown.at(-1).again, { type: "say", text: "Hello?" });
  assert.equal(shown.at(-1).said, "Hello?");
});

test("a snapshot takes actions out of the outbox that it has already", () => {
  const log = new Log();
  const pending = [{ id: "k", action: { type: "say", text: "Hi" }, text: "Hi" }];
  const state = begin(snapshot({}, [], [log.queued("a", "Hi", "k")]), pending);

  assert.deepEqual(state.pending, []);
  assert.deepEqual(texts(state), ["Hi"]);
});

test("frames that are not known, and broken ones, change nothing", () => {
  const state = running();

  for (const frame of [{ type: "ping" }, { type: "later" }, {}, delta("a", 0, undefined), { type: "ack" }]) {
    assert.deepEqual(blocks(apply(state, frame)), blocks(state));
  }
  const unknown = { seq: state.seq + 1, type: "branch_pruned", task_id: "a", data: {} };
  assert.equal(apply(state, unknown).seq, state.seq + 1);
});

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function dice(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

const WORDS = ["fog ", "\u{1F30A}", "na\u00efve ", "*bell* ", "\u{1F9CF}\u200D\u2640\uFE0F", "\n\n"];

/** What a server sends in a session of a few tasks whose workers die now and then. */
function* server(random, log) {
  const pick = (count) => Math.floor(random() * count);
  for (let task = 0; task < 3; task += 1) {
    const id = `t${task}`;
    const messages = [user(`say ${task}`)];
    let attempt = 1;
    yield log.queued(id, `say ${task}`);
    yield log.started(id);
    yield log.ended(id, 0, messages[0]);
    while (messages.length < 2 + pick(2)) {
      const text = Array.from({ length: 1 + pick(8) }, () => WORDS[pick(WORDS.length)]).join("");
      const points = [...text];
      let finished = true;
      for (let offset = 0; offset < points.length && finished; ) {
        const size = 1 + pick(4);
        const piece = points.slice(offset, offset + size).join("");
        yield delta(id, offset, piece, { attempt, message: messages.length });
        offset += size;
        if (random() < 0.08) {
          attempt += 1;
          yield log.started(id, attempt);
          finished = false;
        }
      }
      if (finished) {
        messages.push(assistant(text));
        yield log.ended(id, messages.length - 1, messages.at(-1));
      }
    }
    yield log.completed(id, messages.map((_, index) => index));
  }
}

test("over a bad line, with every loss followed by a replay, no word is lost or doubled", () => {
  for (let seed = 1; seed <= 300; seed += 1) {
    const random = dice(seed);
    const log = new Log();
    let state = begin(snapshot());
    let recent = [];
    for (const frame of server(random, log)) {
      const luck = random();
      recent = [...recent.slice(-4), frame];
      if (luck < 0.1) {
        continue; // lost, as all that follows would be, until the client comes back
      }
      if (luck < 0.2) {
        recent.forEach((old) => (state = apply(state, old))); // told again, in part or whole
      }
      state = apply(state, frame);
      if (state.reload || luck > 0.9) {
        const missed = log.events.filter((event) => event.seq > state.seq);
        state = missed.reduce(apply, { ...state, reload: false });
      }
    }
    const missed = log.events.filter((event) => event.seq > state.seq);
    state = missed.reduce(apply, { ...state, reload: false });

    const expected = log.events
      .filter(({ type }) => type === "message_end")
      .map(({ data }) => data.message.content[0].text ?? data.message.content)
      .filter((text) => text.trim() !== "");
    assert.deepEqual(finished(state).map(({ text }) => text), expected, `seed ${seed}`);
    assert.equal(underWay(state), null, `seed ${seed}`);
    assert.equal(state.reload, false, `seed ${seed}`);
  }
});
