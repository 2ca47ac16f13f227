/** Reading and talking, through everything that can happen to a connection. */

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import {
  PHONE,
  Reader,
  base,
  control,
  isStub,
  launch,
  release,
  throwsDice,
  uncontrolled,
  unscripted,
} from "../reader.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());
afterEach(release);

/** @param {string[]} texts */
function assertGrows(texts) {
  assert.ok(texts.length >= 3, `seen only in ${texts.length} steps`);
  texts.slice(1).forEach((text, index) => assert.ok(text.length > texts[index].length));
}

test("a story: choices, a throw, free words that stream in", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  assert.equal((await reader.shown()).length, 1);

  await reader.choose(isStub ? 2 : 1);
  await reader.page.locator(".said:not(.ghost)").first().waitFor();
  await reader.settle();
  if (isStub) {
    assert.match(await reader.page.locator(".throw").innerText(), /14\s+Wits 16 against 12\s+Success/);
    assert.equal(await reader.page.locator(".badge").first().textContent(), "Takes a throw: Wits 12");
  }
  await reader.choose(1);
  await reader.page.locator(".said:not(.ghost)").nth(1).waitFor();
  await reader.settle();

  assertGrows(await reader.growth("I ask her name, *quietly*, and wait."));
  const told = await reader.agrees();
  assert.deepEqual(
    told.map(({ role }) => role),
    ["assistant", "user", "assistant", "user", "assistant", "user", "assistant"],
  );
  await reader.leave();
});

test("a double click is one deed", async () => {
  const reader = await Reader.arrive(browser);
  const sent = [];
  reader.page.on("websocket", (socket) =>
    socket.on("framesent", ({ payload }) => {
      const { type, action } = JSON.parse(String(payload));
      if (type === "action") {
        sent.push(action.type);
      }
    }),
  );
  await reader.beginStory();

  await reader.page.locator(".choice").first().dblclick();
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();

  assert.deepEqual(sent, ["choose"]);
  await reader.agrees();
  await reader.leave();
});

test("what a story shares stands in the panel", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  const panel = reader.page.locator("#panel");
  assert.match(await panel.innerText(), /Nerve\s+3[\s\S]*Has key\s+no/);

  await reader.choose(1);
  await panel.locator(".changed").waitFor();
  assert.match(await panel.innerText(), /Nerve\s+2/);
  await reader.leave();
});

test("why an answer came, and what it cost", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  assert.equal(await reader.page.locator(".why").count(), 0);
  await reader.say("Which one would you keep?");
  const why = reader.page.locator(".why");
  await why.waitFor();
  assert.equal(await why.locator("ul").isVisible(), false);

  await why.locator("summary").click();
  await why.locator(".why-cost:has-text('This answer')").waitFor();
  assert.deepEqual(await why.locator("li").allTextContents(), [
    "You (7 May 2026): I never liked the <b>red</b> ones.",
    "You (9 May 2026): My sister Ida paints boats.",
  ]);
  const told = await why.locator(":scope > p").allTextContents();
  assert.deepEqual(told.slice(1), [
    "Left out: 3 memories (no room), 1,200 older messages (before what is shown to the model).",
    "This answer: $0.0012, 1 call of a model, 1,400 tokens read, 50 tokens written.",
  ]);
  await reader.page
    .locator("#cost", { hasText: "This session so far: $0.0012, 1 call of a model" })
    .waitFor();

  await reader.say("And the others?");
  await why.nth(1).waitFor();
  await reader.page.locator("#cost", { hasText: "$0.0024, 2 calls" }).waitFor();
  assert.equal(await why.first().evaluate((one) => one.open), true);
  await reader.page.reload();
  await why.nth(1).waitFor();
  await reader.agrees();
  await reader.leave();
});

test("the server dies in the middle of an answer and comes back", { skip: uncontrolled }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  await reader.choose(1);
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();

  await reader.sayHeld("I tell her everything that happened since.");
  await control("/kill");
  assert.match(await reader.lost(), /Reconnecting in \d+ s/);
  await release();
  await control("/start");
  await reader.settle();

  await reader.agrees();
  await reader.leave();
});

test("words written while the server is away are sent once it is back", { skip: uncontrolled }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await control("/kill");
  await reader.lost();
  await reader.say("Are you still there?");
  assert.equal(await reader.page.locator(".said.ghost").textContent(), "You: Are you still there?");
  await control("/start");
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();

  const told = await reader.agrees();
  assert.equal(told.filter(({ role }) => role === "user").length, 1);
  await reader.leave();
});

test("a companion on a phone, killed and restarted in the middle", { skip: uncontrolled }, async () => {
  const reader = await Reader.arrive(browser, { viewport: PHONE, hasTouch: true, isMobile: true });
  await reader.beginCompanion();
  await reader.sayHeld("Which one would you keep?");
  await control("/kill");
  await control("/start");
  await release();
  await reader.settle();

  await reader.agrees();
  const width = await reader.page.evaluate(() => document.documentElement.scrollWidth);
  assert.equal(width, PHONE.width);
  await reader.leave();
});

test("a companion on a phone: the answer streams, a second one follows", async () => {
  const reader = await Reader.arrive(browser, { viewport: PHONE, hasTouch: true, isMobile: true });
  await reader.beginCompanion();
  assertGrows(await reader.growth("Tell me something."));
  await reader.say("And roll a die for me, please.");
  await reader.page.locator(".said:not(.ghost)").nth(1).waitFor();
  await reader.settle();
  if (throwsDice) {
    assert.match(await reader.page.locator(".throw").innerText(), /\d+\s+on a die of 20 sides/);
  }

  await reader.agrees();
  await reader.leave();
});

test("a session is found again on the shelf, and by its address", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  await reader.choose(1);
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();
  const before = await reader.agrees();
  const address = reader.page.url();

  await reader.page.locator(".brand").click();
  await reader.page.locator(`.row[href="${new URL(address).hash}"]`).click();
  await reader.page.locator(".said").waitFor();
  assert.deepEqual(await reader.shown(), before);

  await reader.page.reload();
  await reader.page.locator(".said").waitFor();
  await reader.settle();
  assert.deepEqual(await reader.shown(), before);
  assert.ok(await reader.page.locator(".choice").first().isVisible());
  await reader.leave();
});

test("a page that is reloaded in the middle of an answer goes on with it", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.sayHeld("Tell me about the sea.");
  await reader.page.reload();
  await reader.page.locator(".said").waitFor();
  await release();
  await reader.settle();

  await reader.agrees();
  await reader.leave();
});

test("older sessions are further down the shelf", async () => {
  const reader = await Reader.arrive(browser);
  for (let count = 0; count < 7; count += 1) {
    const body = JSON.stringify({ agent: "companion", key: `older-${Date.now()}-${count}` });
    const headers = { "Content-Type": "application/json" };
    await fetch(`${base}/v1/sessions`, { method: "POST", headers, body });
  }
  await reader.page.reload();
  const rows = reader.page.locator(".row");
  await rows.first().waitFor();
  assert.equal(await rows.count(), 6);

  const asked = [];
  reader.page.on("request", (request) => asked.push(request.url()));
  await reader.page.getByRole("button", { name: "Show older ones" }).evaluate((button) => {
    button.click();
    button.click(); // once more before anything has come
  });
  await rows.nth(6).waitFor();
  assert.equal(asked.filter((url) => url.includes("/v1/sessions?")).length, 1);
  const links = await rows.evaluateAll((all) => all.map((one) => one.href));
  assert.equal(new Set(links).size, links.length);
  await reader.leave();
});

test("offline is told at once, and left again", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.context.setOffline(true);
  await reader.connection("offline");
  assert.equal(await reader.page.locator("#connection").innerText(), "Offline");
  await reader.context.setOffline(false);
  await reader.settle();
  await reader.leave();
});

test("an answer can be stopped", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.sayHeld("Tell me a long one.");
  await reader.page.locator("#stop").click();
  await reader.page.locator(".note", { hasText: "Stopped" }).waitFor();
  await reader.settle();

  await reader.agrees();
  assert.equal(await reader.page.evaluate(() => document.activeElement?.id), "transcript");
  await reader.leave();
});

test("two windows on one session show the same", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  const other = await Reader.arrive(browser);
  await other.page.goto(reader.page.url());
  await other.page.locator(".passage").waitFor();
  await other.settle();

  await reader.say("Do you hear me twice?");
  await other.page.locator(".said:not(.ghost)").waitFor();
  await Promise.all([reader.settle(), other.settle()]);

  assert.deepEqual(await other.shown(), await reader.agrees());
  await reader.leave();
  await other.leave();
});

test("a worker that dies leaves no unfinished words behind", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.sayHeld("Hold on to this thought.");
  await control("/kill-worker");
  await release();
  await reader.settle();

  await reader.agrees();
  await reader.leave();
});

test("an action whose ack was lost is taken once", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await control("/settings", { lost_acks: 2 });
  await reader.say("Say that again?");
  await reader.lost();
  await reader.page.locator(".passage").nth(1).waitFor();
  await reader.settle();

  const accepted = await (await fetch(`${process.env.FIRESIDE_PAGE_CONTROL}/accepted`)).json();
  assert.equal(accepted[reader.sessionId], 2); // the opening, and this
  const told = await reader.agrees();
  assert.equal(told.filter(({ role }) => role === "user").length, 1);
  assert.equal(await reader.page.evaluate(() => sessionStorage.length), 0);
  await reader.leave();
});

test("events that are forgotten meanwhile are no gap in the text", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  const other = await Reader.arrive(browser);
  await other.page.goto(reader.page.url());
  await other.page.locator(".passage").waitFor();
  await other.settle();
  await reader.context.setOffline(true);
  await reader.connection("offline");

  await other.say("Meanwhile, in another window.");
  await other.page.locator(".said:not(.ghost)").waitFor();
  await other.settle();
  await control("/forget");
  await reader.context.setOffline(false);
  await reader.page.locator(".said").waitFor();
  await reader.settle();

  assert.deepEqual(await reader.agrees(), await other.agrees());
  await reader.leave();
  await other.leave();
});

test("what is said is text, never markup", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  const words = "<img src=x onerror=document.title='gone'><b>bold</b> & <script>1</script>";
  await reader.say(words);
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();

  assert.equal((await reader.shown())[1].text, words);
  assert.equal(await reader.page.locator("#transcript :is(img, b, script)").count(), 0);
  await reader.leave();
});

test("a story comes to its end, and begins once more", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  const first = reader.sessionId;
  for (let turn = 0; turn < 3; turn += 1) {
    await reader.choose(1);
    await reader.page.locator(".said:not(.ghost)").nth(turn).waitFor();
    await reader.settle();
  }
  assert.match(await reader.page.locator("#ending").innerText(), /The end/);
  await reader.agrees();

  await reader.page.getByRole("button", { name: "Read it once more" }).click();
  await reader.page.locator(".choice").first().waitFor();
  await reader.settle();
  assert.notEqual(reader.sessionId, first);
  assert.equal((await reader.agrees()).length, 1);
  await reader.leave();
});

test("the page asks nobody else for anything, and its policy holds", async () => {
  const response = await fetch(base);
  const policy = response.headers.get("content-security-policy") ?? "";
  for (const rule of ["default-src 'none'", "script-src 'self'", "style-src 'self'"]) {
    assert.ok(policy.includes(rule), rule);
  }
  assert.ok(!policy.includes("unsafe"));
  assert.doesNotMatch(await response.text(), /<script(?![^>]*src=)|<style|style=|\son\w+=|https?:/);
});
