import assert from "node:assert/strict";
import { test } from "node:test";

import { Problem } from "../../../api/page/static/api.js";
import { CLOSE, Connection } from "../../../api/page/static/connection.js";
import { Player } from "../../../api/page/static/player.js";

/** A socket whose other end is the test. */
class FakeSocket extends EventTarget {
  static made = [];

  constructor(url) {
    super();
    this.url = url;
    this.sent = [];
    this.closed = false;
    FakeSocket.made.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  opens() {
    this.dispatchEvent(new Event("open"));
  }

  gives(frame) {
    const data = typeof frame === "string" ? frame : JSON.stringify(frame);
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
  }

  breaks(code) {
    this.dispatchEvent(Object.assign(new Event("close"), { code }));
  }
}

/** A connection with a clock that the test turns. */
function connect(wiring = {}) {
  FakeSocket.made = [];
  const line = { statuses: [], frames: [], timers: [], online: true, time: 1_000, after: 0 };
  line.connection = new Connection({
    url: () => `ws://here/ws?after=${line.after}`,
    ticket: async () => null,
    authorize: async () => true,
    onFrame: (frame) => line.frames.push(frame),
    onStatus: (status) => line.statuses.push(status),
    isOnline: () => line.online,
    random: () => 0.5,
    now: () => line.time,
    Socket: FakeSocket,
    setTimer: (call, milliseconds) => line.timers.push({ call, milliseconds, live: true }) - 1,
    clearTimer: (timer) => {
      if (line.timers[timer]) {
        line.timers[timer].live = false;
      }
    },
    ...wiring,
  });
  line.live = () => line.timers.filter((timer) => timer.live);
  line.fire = async (milliseconds) => {
    const due = line.live().find((timer) => timer.milliseconds === milliseconds);
    assert.ok(due, `a timer of ${milliseconds} ms`);
    due.live = false;
    due.call();
    await settled();
  };
  line.phase = () => line.statuses.at(-1).phase;
  return line;
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const socket = () => FakeSocket.made.at(-1);

test("it passes frames on, answers pings, and is not upset by what is no JSON", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  assert.equal(line.phase(), "connecting");
  socket().opens();
  assert.equal(line.phase(), "connected");

  socket().gives({ seq: 1, type: "task_queued" });
  socket().gives({ type: "ping" });
  socket().gives("{");

  assert.deepEqual(line.frames, [{ seq: 1, type: "task_queued" }]);
  assert.deepEqual(socket().sent, [{ type: "pong" }]);
});

test("it comes back with the newest `after`, waiting twice as long each time it fails", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  socket().opens();
  socket().gives({ seq: 7, type: "task_queued" });
  line.after = 7;

  for (const pause of [500, 1000, 2000, 4000, 8000, 15_000, 15_000]) {
    socket().breaks(1006);
    assert.deepEqual(line.statuses.at(-1), { phase: "waiting", until: line.time + pause });
    await line.fire(pause);
    assert.equal(socket().url, "ws://here/ws?after=7");
  }
  socket().opens();
  socket().gives({ type: "ping" });
  socket().breaks(1012);
  assert.deepEqual(line.statuses.at(-1), { phase: "waiting", until: line.time + 500 });
});

test("what an earlier socket still says is not heard", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  const first = socket();
  first.opens();
  line.connection.renew();
  await settled();
  assert.ok(first.closed);

  first.gives({ seq: 1 });
  first.breaks(1006);

  assert.deepEqual(line.frames, []);
  assert.equal(line.phase(), "connecting");
  assert.equal(FakeSocket.made.length, 2);
});

test("a line that says nothing for too long is given up", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  socket().opens();
  const silent = socket();

  await line.fire(50_000);

  assert.ok(silent.closed);
  assert.equal(line.phase(), "waiting");
});

test("the ticket is the first frame", async () => {
  const line = connect({ ticket: async () => "t-1" });
  line.connection.start();
  await settled();
  socket().opens();
  line.connection.send({ type: "action" });

  assert.deepEqual(socket().sent, [{ type: "auth", ticket: "t-1" }, { type: "action" }]);
});

test("a refused ticket is tried once more, then a key is asked for", async () => {
  const asked = [];
  const line = connect({
    authorize: async (refused) => {
      asked.push(refused);
      return asked.length < 2;
    },
  });
  line.connection.start();
  await settled();
  socket().breaks(CLOSE.unauthenticated);
  await settled();
  assert.equal(FakeSocket.made.length, 2);
  socket().breaks(CLOSE.unauthenticated);
  await settled();

  assert.deepEqual(asked, [false, true]);
  assert.deepEqual(line.statuses.at(-1), { phase: "ended", reason: "This session needs a key." });
  assert.equal(line.live().length, 0);
});

test("no ticket because the server is away: it tries again later", async () => {
  const line = connect({ ticket: () => Promise.reject(new Error("away")) });
  line.connection.start();
  await settled();

  assert.equal(line.phase(), "waiting");
  assert.equal(FakeSocket.made.length, 0);
  assert.equal(line.live().length, 1);
});

test("no ticket because the reader gave no key: it does not ask for ever", async () => {
  const refused = Object.assign(new Error("no key"), { status: 401 });
  const line = connect({ ticket: () => Promise.reject(refused) });
  line.connection.start();
  await settled();

  assert.deepEqual(line.statuses.at(-1), { phase: "ended", reason: "This session needs a key." });
  assert.equal(line.live().length, 0);
});

for (const [name, code] of [["no such session", CLOSE.noSession], ["wrong origin", CLOSE.wrongOrigin]]) {
  test(`${name}: it ends in words and never tries again`, async () => {
    const line = connect();
    line.connection.start();
    await settled();
    socket().breaks(code);
    line.connection.wake();
    await settled();

    assert.equal(line.phase(), "ended");
    assert.notEqual(line.statuses.at(-1).reason, "");
    assert.equal(line.live().length, 0);
    assert.equal(FakeSocket.made.length, 1);
  });
}

test("too many sockets: it waits longer", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  socket().breaks(CLOSE.tooManySockets);

  assert.deepEqual(line.statuses.at(-1), { phase: "waiting", until: line.time + 10_000 });
});

test("offline it says so, and it is back as soon as the network is", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  socket().opens();
  line.online = false;
  line.connection.sleep();
  assert.equal(line.phase(), "offline");
  assert.equal(line.connection.send({ type: "action" }), false);

  line.online = true;
  line.connection.wake();
  await settled();
  socket().opens();
  assert.equal(line.phase(), "connected");
});

test("stopped, it neither hears nor tries", async () => {
  const line = connect();
  line.connection.start();
  await settled();
  line.connection.stop();
  socket().gives({ seq: 1 });
  line.connection.wake();
  line.connection.renew();
  await settled();

  assert.equal(FakeSocket.made.length, 1);
  assert.deepEqual(line.frames, []);
  assert.equal(line.live().length, 0);
});

for (const error of [new Problem(404, "not_found", "No such session."), new Problem(0, "", "Away.")]) {
  test(`a session that was left tells nothing of its answer: ${error.message}`, async () => {
    let refuse;
    const snapshot = () => new Promise((_, reject) => (refuse = reject));
    const told = [];
    const listener = { onState() {}, onStatus: ({ phase }) => told.push(phase), onRefused() {} };
    const player = new Player({ snapshot }, "left", listener);
    const opened = player.open();

    player.close();
    refuse(error);
    await opened;

    assert.deepEqual(told, ["connecting"]);
  });
}
