/** For everybody: by keyboard, with a screen reader, on a phone, in the dark, without motion. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, afterEach, before, test } from "node:test";

import { DESKTOP, PHONE, Reader, launch, release, unscripted } from "../reader.mjs";

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());
afterEach(release);

const focused = (reader) =>
  reader.page.evaluate(() => {
    const { activeElement } = document;
    return activeElement?.id || activeElement?.className || activeElement?.tagName;
  });

/** @param {Reader} reader */
async function violations(reader) {
  // Injected past the page's policy, which is right to forbid it.
  await reader.page.evaluate(await (await import("node:fs/promises")).readFile(axe, "utf8"));
  const found = await reader.page.evaluate(() =>
    window.axe.run(document, { resultTypes: ["violations"] }),
  );
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
}

const LOOKS = {
  light: { viewport: DESKTOP, colorScheme: "light" },
  dark: { viewport: DESKTOP, colorScheme: "dark" },
  phone: { viewport: PHONE, colorScheme: "light", hasTouch: true, isMobile: true },
  "phone in the dark": { viewport: PHONE, colorScheme: "dark", hasTouch: true, isMobile: true },
};

for (const [name, look] of Object.entries(LOOKS)) {
  test(`axe finds nothing: ${name}`, async () => {
    const reader = await Reader.arrive(browser, { ...look, reducedMotion: "reduce" });
    await reader.page.locator(".card").first().waitFor();
    assert.deepEqual(await violations(reader), [], "shelf");

    await reader.beginStory();
    await reader.choose(2);
    await reader.page.locator(".said:not(.ghost)").waitFor();
    await reader.settle();
    assert.deepEqual(await violations(reader), [], "story");
    const toggle = reader.page.locator("#panel-toggle");
    if (await toggle.isVisible()) {
      await toggle.click();
      assert.deepEqual(await violations(reader), [], "panel");
    }

    await reader.page.goto("/#/");
    await reader.beginCompanion();
    await reader.sayHeld("Good evening to you, too.");
    assert.deepEqual(await violations(reader), [], "under way");
    await release();
    await reader.settle();
    assert.deepEqual(await violations(reader), [], "companion");
    const why = reader.page.locator(".why summary").first();
    if (await why.isVisible()) {
      await why.click();
      await reader.page.locator(".why-cost:has-text('This answer')").waitFor();
      assert.deepEqual(await violations(reader), [], "why");
    }
    await reader.page.evaluate(() => document.querySelector("#key-dialog").showModal());
    assert.deepEqual(await violations(reader), [], "key");
    await reader.leave();
  });
}

test("everything by keyboard", async () => {
  const reader = await Reader.arrive(browser);
  const { keyboard } = reader.page;
  await reader.page.locator(".card").first().waitFor();
  await keyboard.press("Tab");
  assert.equal(await focused(reader), "skip");
  await keyboard.press("Enter");
  for (let press = 0; press < 40 && (await focused(reader)) !== "card"; press += 1) {
    await keyboard.press("Tab");
  }
  await keyboard.press("Enter");
  await reader.page.locator(".choice").first().waitFor();
  await reader.settle();
  assert.equal(await focused(reader), "reading-title");

  await keyboard.press("2");
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();

  await keyboard.press("Tab");
  for (let press = 0; press < 10 && (await focused(reader)) !== "choice"; press += 1) {
    await keyboard.press("Tab");
  }
  await keyboard.press("Enter");
  await reader.page.locator(".said:not(.ghost)").nth(1).waitFor();
  await reader.settle();
  assert.equal(await focused(reader), "transcript");

  for (let press = 0; press < 10 && (await focused(reader)) !== "words"; press += 1) {
    await keyboard.press("Tab");
  }
  await keyboard.type("I count to 3");
  await keyboard.press("Shift+Enter");
  await keyboard.type("and jump.");
  await keyboard.press("Enter");
  await reader.page.locator(".said:not(.ghost)").nth(2).waitFor();
  assert.equal(await focused(reader), "words");
  await reader.settle();
  const told = await reader.agrees();
  assert.equal(told[5].text, "I count to 3\nand jump.");

  await keyboard.press("Escape");
  assert.equal(await focused(reader), "transcript");
  if (await reader.page.locator(".choice").first().isVisible()) {
    await keyboard.press("1");
    await reader.page.locator(".said").nth(3).waitFor();
  }
  await reader.leave();
});

test("the Enter that chooses a word of an input method sends nothing", async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginCompanion();
  await reader.page.locator("#words").fill("\u306b\u307b\u3093");

  for (const how of [{ isComposing: true }, { keyCode: 229 }]) {
    await reader.page.locator("#words").dispatchEvent("keydown", { key: "Enter", ...how });
  }

  assert.equal(await reader.page.locator("#words").inputValue(), "\u306b\u307b\u3093");
  await reader.leave();
});

test("a screen reader hears finished paragraphs, each once", { skip: unscripted }, async () => {
  const reader = await Reader.arrive(browser);
  await reader.beginStory();
  await reader.page.evaluate(() => {
    window.heard = [];
    const spoken = document.querySelector("#spoken");
    new MutationObserver((changes) => {
      const added = changes.flatMap((change) => [...change.addedNodes]);
      window.heard.push(...added.map((node) => node.textContent));
    }).observe(spoken, { childList: true });
  });
  await reader.choose(2);
  await reader.page.locator(".said:not(.ghost)").waitFor();
  await reader.settle();
  await reader.say("Who is there?");
  await reader.page.locator(".said:not(.ghost)").nth(1).waitFor();
  await reader.settle();

  const heard = await reader.page.evaluate(() => window.heard);
  const told = (await reader.transcript()).slice(1).filter(({ role }) => role === "assistant");
  assert.deepEqual(
    heard.filter((words) => !/^\d choices\.$/.test(words) && !/on the die/.test(words)),
    told.flatMap(({ text }) => text.split("\n")),
  );
  assert.equal(heard.filter((words) => words === "3 choices.").length, 2);
  assert.ok(heard.includes("Wits: 14 on the die plus 2 makes 16 against 12, success."));
  await reader.leave();
});

test("without motion nothing moves", async () => {
  const reader = await Reader.arrive(browser, { reducedMotion: "reduce" });
  await reader.beginCompanion();
  await reader.sayHeld("Softly, please.");
  assert.deepEqual(
    await reader.page.evaluate(() => document.getAnimations().map((one) => one.animationName)),
    [],
  );
  await reader.leave();
});

test("fingers find everything: nothing to press is small", async () => {
  const reader = await Reader.arrive(browser, { viewport: PHONE, hasTouch: true, isMobile: true });
  await reader.beginStory();
  const small = await reader.page
    .locator("button:visible, a:visible, textarea:visible")
    .evaluateAll((all) =>
      all
        .filter((one) => !one.matches(".skip"))
        .map((one) => [one.id || one.className, one.getBoundingClientRect()])
        .filter(([, box]) => box.height < 40 || box.width < 40)
        .map(([name]) => name),
    );
  assert.deepEqual(small, []);
  await reader.leave();
});
