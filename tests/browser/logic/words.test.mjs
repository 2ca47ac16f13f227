import assert from "node:assert/strict";
import { test } from "node:test";

import { wordsOfUsage } from "../../../api/page/static/cost.js";
import { askedOf, checkOf, dieOf } from "../../../api/page/static/dice.js";
import { Outbox } from "../../../api/page/static/outbox.js";
import {
  codePoints,
  paragraphs,
  plain,
  skipCodePoints,
  spans,
} from "../../../api/page/static/prose.js";
import { recalledFor, wordsOfLeftOut } from "../../../api/page/static/recalled.js";

const marked = (text) => spans(text).map((span) => `${span.mark}:${span.text}`);

test("paragraphs are the lines that have something in them", () => {
  assert.deepEqual(paragraphs("One.\n\n  Two. \r\nThree.\n"), ["One.", "Two.", "Three."]);
  assert.deepEqual(paragraphs(" \n "), []);
});

test("emphasis", () => {
  assert.deepEqual(marked("a *wet* place"), ["plain:a ", "em:wet", "plain: place"]);
  assert.deepEqual(marked("**blue**, _not_ red"), ["strong:blue", "plain:, ", "em:not", "plain: red"]);
});

test("what only looks like emphasis stays as it is", () => {
  for (const text of ["2 * 3 * 4", "a * b", "*open", "some_file_name", "na\u00ef_v_e", "** **", "__"]) {
    assert.deepEqual(marked(text), [`plain:${text}`]);
  }
});

test("markup is text like any other", () => {
  const text = "<img src=x onerror=alert(1)> &amp; [a](javascript:alert(1))";
  assert.deepEqual(marked(text), [`plain:${text}`]);
});

test("a long text full of marks is read in no time", () => {
  const began = performance.now();
  for (const text of ["*a ".repeat(50_000), "_".repeat(100_000), "**".repeat(50_000)]) {
    plain(text);
  }
  assert.ok(performance.now() - began < 2_000);
});

test("code points", () => {
  assert.equal(codePoints("\u{1F30A}a\u00ef"), 3);
  assert.equal(skipCodePoints("\u{1F30A}a\u{1F30A}b", 2), "\u{1F30A}b");
  assert.equal(skipCodePoints("ab", 5), "");
  assert.equal(skipCodePoints("ab", 0), "ab");
});

test("a choice's tags ask for a throw", () => {
  assert.deepEqual(askedOf(["dc:12", "stat: wits"]), { dc: 12, stat: "wits" });
  assert.deepEqual(askedOf(["DC: 8"]), { dc: 8, stat: "" });
  for (const tags of [[], ["stat:wits"], ["dc:soon"], undefined, "dc:12x", [null]]) {
    assert.equal(askedOf(tags), null);
  }
});

test("a decision's check, whole and in part", () => {
  const check = { stat: "wits", dc: 12, roll: 9, total: 11, success: false };
  assert.deepEqual(checkOf({ decision: { check } }), check);
  assert.equal(checkOf({ decision: { check: { roll: 9, dc: 5 } } }).success, true);
  for (const result of [null, {}, { decision: null }, { decision: { check: null } }]) {
    assert.equal(checkOf(result), null);
  }
});

test("a tool's result shows a die only where it is one", () => {
  const result = (name, text, more) => ({ tool_name: name, content: [{ type: "text", text }], ...more });
  assert.deepEqual(dieOf(result("roll_dice", "4")), { value: 4, sides: 6 });
  assert.deepEqual(dieOf(result("oracle", "yes", { details: { roll: 11, sides: 12 } })), {
    value: 11,
    sides: 12,
  });
  assert.equal(dieOf(result("current_time", "It is 12:00")), null);
  assert.equal(dieOf(result("roll_dice", "a die has 2 sides", { is_error: true })), null);
  assert.equal(dieOf(result("soldier_card", "7")), null);
});

class Store {
  items = new Map();
  getItem(key) {
    return this.items.get(key) ?? null;
  }
  setItem(key, value) {
    this.items.set(key, value);
  }
  removeItem(key) {
    this.items.delete(key);
  }
}

test("the outbox outlives a reload, and keeps its order and its ids", () => {
  const store = new Store();
  const [first, second] = ["1", "2"].map((id) => ({ id, action: { type: "say" }, text: id }));
  const outbox = new Outbox("s", store);
  outbox.add(first);
  outbox.add(second);

  assert.deepEqual(new Outbox("s", store).all(), [first, second]);
  assert.deepEqual(new Outbox("other", store).all(), []);
  assert.deepEqual(new Outbox("s", store).remove("1"), first);
  assert.equal(outbox.remove("1"), undefined);
  assert.deepEqual(outbox.all(), [second]);
});

test("an outbox that somebody broke is empty", () => {
  const store = new Store();
  for (const kept of ["{", "null", '"x"', "[1, null, {}]"]) {
    store.setItem("fireside:outbox:s", kept);
    assert.deepEqual(new Outbox("s", store).all(), []);
  }
});

test("what an answer was made from is read with care", () => {
  const note = { memories: [{ text: "a" }, { text: 7 }, null, { text: "" }], left_out: "many" };
  const said = (details) => ({ role: "user", content: "x", details });

  assert.deepEqual(recalledFor(said({ context: note })), { memories: ["a"], leftOut: [] });
  for (const none of [undefined, null, {}, { context: null }, { context: "x" }, "x"]) {
    assert.equal(recalledFor(said(none)), null);
  }
  assert.equal(recalledFor({ role: "assistant", details: { context: note } }), null);
  const days = [{ text: "7 May 2026:\n- Ada: Hi." }, { text: "You: Hello." }];
  assert.deepEqual(recalledFor(said({ context: { memories: days } })).memories, ["7 May 2026: Ada: Hi.", "You: Hello."]);
  const leftOut = [
    { what: "memories", why: "budget", count: 3 },
    { what: "memories", why: "shown", count: 3 },
    { what: "odd", why: "other", count: 1 },
    { what: "soul", count: 0 },
    null,
  ];
  const told = recalledFor(said({ context: { left_out: leftOut } }));
  assert.equal(wordsOfLeftOut(told), "3 memories (no room), 1 odd (other)");
});

test("what was used is told in words", () => {
  const usage = { calls: 1, input: 1, output: 1, cache_read: 0, cache_write: 0, unpriced_calls: 0 };
  const rest = "1 call of a model, 1 token read, 1 token written";

  assert.equal(wordsOfUsage({ ...usage, billed_usd: 0.01 }), `$0.0100, ${rest}`);
  assert.equal(wordsOfUsage({ ...usage, billed_usd: 1e-6 }), `less than $0.0001, ${rest}`);
  assert.equal(wordsOfUsage({ ...usage, billed_usd: null }), `no price is known, ${rest}`);
  const some = { ...usage, calls: 1200, unpriced_calls: 2, billed_usd: 3 };
  assert.match(wordsOfUsage(some), /^\$3\.0000 and what has no price, 1,200 calls/);
});
