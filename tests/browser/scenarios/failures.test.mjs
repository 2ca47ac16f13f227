/** What goes wrong is told in words, and nothing that a reader wrote is lost by it. */

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { Reader, base, control, launch, uncontrolled, unscripted } from "../reader.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());
afterEach(async () => {
  if (!unscripted) {
    await control("/settings", { key: null, failure: null, refusal: null });
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
  assert.equal(await reader.page.locator(".said").count(), 0);
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

test("a session that is not there", async () => {
  const reader = await Reader.arrive(browser);
  await reader.page.goto("/#/session/00000000-0000-4000-8000-000000000000");
  await reader.page.locator("#trouble").waitFor();
  assert.match(await reader.page.locator("#trouble").innerText(), /no such session/i);
  await reader.connection("ended");
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

test("a 401 asks for a key, and again for a wrong one", { skip: unscripted }, async () => {
  await control("/settings", { key: "right" });
  const reader = await Reader.arrive(browser);
  const dialog = reader.page.getByRole("dialog");
  await dialog.waitFor();
  const field = dialog.getByLabel("API key");
  assert.equal(await field.evaluate((one) => one === document.activeElement), true);
  await field.fill("wrong");
  await field.press("Enter");
  await dialog.getByText("did not accept this key").waitFor();
  await field.fill("right");
  await field.press("Enter");
  await reader.page.locator(".card").first().waitFor();
  assert.equal(await dialog.count(), 0);

  await reader.beginCompanion();
  await reader.say("Nobody but us.");
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();
  assert.ok(!(await reader.page.content()).includes("right-key"));

  await reader.page.reload();
  await reader.page.locator(".said").waitFor();
  await reader.settle();
  const url = `${base}/v1/sessions/${reader.sessionId}/messages`;
  const told = await (await fetch(url, { headers: { Authorization: "Bearer right" } })).json();
  assert.equal((await reader.shown()).length, told.messages.length);
  await reader.leave();
});

test("who has no key is told so", { skip: unscripted }, async () => {
  await control("/settings", { key: "right" });
  const reader = await Reader.arrive(browser);
  await reader.page.getByRole("button", { name: "Not now" }).click();
  await reader.page.locator("#shelf-problem").waitFor();
  assert.equal(await reader.page.locator("#shelf-problem").innerText(), "Give an API key.");
  await reader.leave();
});
