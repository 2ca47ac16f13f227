/** What goes wrong is told in words, and nothing that a reader wrote is lost by it. */

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { Reader, control, launch, uncontrolled, unscripted } from "../reader.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());
afterEach(async () => {
  if (!unscripted) {
    await control("/settings", { failure: null, refusal: null });
  }
});

test("a task that fails says why, and can be tried again", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await control("/settings", { failure: "The model did not answer in time." });
  await reader.say("Are you there?");
  const note = reader.page.locator(".note.trouble");
  await note.waitFor();
  assert.match(await note.innerText(), /The model did not answer in time\./);
  assert.match(await reader.page.locator("#spoken").innerText(), /did not answer in time/);
  await reader.agrees();

  await note.getByRole("button", { name: "Try again" }).click();
  await reader.page.locator(".passage").nth(1).waitFor();
  await reader.settle();
  assert.equal(await note.count(), 0);
  await reader.agrees();
  await reader.leave();
});

test("words that are refused come back into the field", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  const refusal = { code: "too_many_tasks", message: "There are too many tasks already." };
  await control("/settings", { refusal });
  await reader.say("One more thing.");
  const trouble = reader.page.locator("#trouble");
  await trouble.waitFor();
  assert.equal(await trouble.innerText(), "Not sent: There are too many tasks already.");
  assert.equal(await reader.page.locator("#words").inputValue(), "One more thing.");
  await reader.page.locator(".said").waitFor({ state: "detached" });
  assert.equal(await reader.page.evaluate(() => sessionStorage.length), 0);
  await reader.leave();
});

test("an answer that leaves it open whether it was taken: sent again", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  const refusal = { code: "unavailable", message: "Try again soon." };
  await control("/settings", { refusal });
  await reader.say("Never mind the weather.");
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();
  await reader.agrees();
  await reader.leave();
});

test("words that were never sent can be taken back", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.context.setOffline(true);
  await reader.connection("offline");
  await reader.say("On second thoughts");
  await reader.page.locator(".said.ghost").waitFor();
  await reader.page.locator("#stop").click();
  assert.equal(await reader.page.locator("#words").inputValue(), "On second thoughts");
  // The page draws once a frame: the words are back before the bubble is gone.
  await reader.page.locator(".said").waitFor({ state: "detached" });
  await reader.context.setOffline(false);
  await reader.settle();
  await reader.agrees();
  await reader.leave();
});

test("a session that is not there", async () => {
  const reader = await Reader.arrive(browser);
  await reader.page.goto("/#/session/00000000-0000-4000-8000-000000000000");
  await reader.page.locator("#trouble").waitFor();
  assert.match(await reader.page.locator("#trouble").innerText(), /no such session/i);
  await reader.connection("ended");
  await reader.leave();
});

test("an address that can be no session's shows the shelf", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  for (const id of ["%", "%E0%A4%A", "..", "a/b"]) {
    await reader.page.evaluate((to) => (location.hash = `#/session/${to}`), id);
    await reader.page.locator("#shelf .card").first().waitFor();
    assert.equal(await reader.page.locator("#reading").isVisible(), false);
    await reader.page.goBack();
    await reader.page.locator(".passage").first().waitFor();
  }
  await reader.leave();
});

test("a server that is away when the shelf is opened", { skip: uncontrolled }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.page.locator(".card").first().waitFor();
  await reader.context.route("**/v1/**", (route) => route.abort());
  await reader.page.evaluate(() => window.dispatchEvent(new Event("hashchange")));
  await reader.page.locator("#shelf-problem").waitFor();
  assert.equal(await reader.page.locator("#shelf-problem").innerText(), "The server can't be reached.");
  await reader.leave();
});
