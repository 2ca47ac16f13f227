/** A server that wants to know who is there. FIRESIDE_PAGE_KEY is a key that it accepts. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Reader, control, isStub, key, launch } from "../reader.mjs";

const skip = key === undefined ? "no key of the server under test is known" : false;

let browser;
before(async () => {
  browser = await launch();
  if (isStub) {
    await control("/settings", { key });
  }
});
after(async () => {
  await browser.close();
  if (isStub) {
    await control("/settings", { key: null });
  }
});

test("a 401 asks for a key, and again for a wrong one", { skip }, async () => {
  const reader = await Reader.arrive(browser);
  const dialog = reader.page.getByRole("dialog");
  await dialog.waitFor();
  const field = dialog.getByLabel("API key");
  assert.equal(await field.evaluate((one) => one === document.activeElement), true);
  await field.fill("wrong");
  await field.press("Enter");
  await dialog.getByText("did not accept this key").waitFor();
  await field.fill(key);
  await field.press("Enter");
  await reader.page.locator(".card").first().waitFor();
  assert.equal(await dialog.count(), 0);

  await reader.beginCompanion();
  await reader.say("Nobody but us.");
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();
  await reader.agrees();
  assert.ok(!(await reader.page.content()).includes(key));
  assert.ok(!reader.page.url().includes(key));

  await reader.page.reload();
  await reader.page.locator(".said").waitFor();
  await reader.settle();
  await reader.agrees();
  await reader.leave();
});

test("who has no key is told so", { skip }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.page.getByRole("button", { name: "Not now" }).click();
  await reader.page.locator("#shelf-problem").waitFor();
  assert.match(await reader.page.locator("#shelf-problem").innerText(), /API key/);
  await reader.leave();
});
