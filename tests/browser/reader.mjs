/**
 * A reader with a browser: opens the page, does what people do, and says what is to be seen.
 *
 * FIRESIDE_PAGE_URL is the server under test. FIRESIDE_PAGE_CONTROL, where it is set, takes
 * `POST /kill`, `POST /start`, which starts the server again on the same port, and
 * `POST /settings {"pieces": number or null}`: after so many pieces each answer waits until it is set
 * to null. The stub gateway's control takes more.
 */

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

import { plain } from "../../api/page/static/prose.js";
import { textOf } from "../../api/page/static/messages.js";

export const base = process.env.FIRESIDE_PAGE_URL;
const controlled = process.env.FIRESIDE_PAGE_CONTROL;
/** Only the stub plays its stories the same way each time. */
export const isStub = process.env.FIRESIDE_PAGE_STUB === "1";
/** A key that the server accepts, where it asks for one. */
export const key = process.env.FIRESIDE_PAGE_KEY ?? (isStub ? "stub-key" : undefined);
/** Whether a companion that is asked to roll a die of twenty sides does so. */
export const throwsDice = isStub || process.env.FIRESIDE_PAGE_DICE === "1";
/** A whole answer of a slow model may take this long. */
export const PATIENCE = Number(process.env.FIRESIDE_PAGE_PATIENCE ?? 60_000);

export const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { width: 375, height: 667 };

/** Why a test that needs the control cannot run, or false. */
export const uncontrolled = controlled ? false : "the server under test cannot be killed from here";
export const unscripted = isStub ? false : "only the stub gateway can do this on demand";

/** @returns {Promise<import("playwright-core").Browser>} */
export function launch() {
  return chromium.launch({
    executablePath: process.env.FIRESIDE_CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
}

/**
 * @param {string} path
 * @param {object} [body]
 */
export async function control(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(`${controlled}${path}`, request);
  assert.equal(response.status, 200);
  return response.json();
}

/** Lets answers go on that `sayHeld` has held up, and all that come. */
export async function release() {
  if (controlled) {
    await control("/settings", { pieces: null });
  }
}

export class Reader {
  /**
   * @param {import("playwright-core").Browser} browser
   * @param {object} [how] options of the browser's context
   */
  static async arrive(browser, how = {}) {
    const context = await browser.newContext({ viewport: DESKTOP, baseURL: base, ...how });
    context.setDefaultTimeout(PATIENCE);
    await context.addInitScript(notePhases);
    const reader = new Reader(context, await context.newPage());
    await reader.page.goto("/");
    return reader;
  }

  /**
   * @param {import("playwright-core").BrowserContext} context
   * @param {import("playwright-core").Page} page
   */
  constructor(context, page) {
    this.context = context;
    this.page = page;
    /** What the page may never do. @type {string[]} */
    this.faults = [];
    page.on("pageerror", (error) => this.faults.push(String(error)));
    page.on("console", (message) => {
      // A lost connection is reported by the browser itself; everything else is ours.
      const text = message.text();
      if (message.type() === "error" && !/WebSocket|Failed to load resource/.test(text)) {
        this.faults.push(text);
      }
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(base) && !request.url().startsWith("data:")) {
        this.faults.push(`asked for ${request.url()}`);
      }
    });
  }

  async leave() {
    await this.context.close();
    assert.deepEqual(this.faults, []);
  }

  get sessionId() {
    return new URL(this.page.url()).hash.split("/")[2];
  }

  /** Begins the first story of the shelf, or the one that FIRESIDE_PAGE_STORY names. */
  async beginStory() {
    const story = process.env.FIRESIDE_PAGE_STORY;
    const card = story ? `[data-offer="${story}"]` : ".shelf-part:has-text('Stories') .card";
    await this.page.locator(card).first().click();
    await this.page.locator(".choice").first().waitFor();
    await this.settle();
  }

  async beginCompanion() {
    await this.page.locator(".shelf-part:has-text('Companions') .card").first().click();
    await this.page.locator(".passage").first().waitFor();
    await this.settle();
  }

  /** @param {number} number from 1 on */
  async choose(number) {
    await this.page.locator(".choice").nth(number - 1).click();
  }

  /** @param {string} words */
  async say(words) {
    await this.page.locator("#words").fill(words);
    await this.page.locator("#send").click();
  }

  /** Waits until nothing is under way and everything is told. */
  async settle() {
    await this.page.waitForFunction(
      () =>
        document.querySelector("#under-way").hidden &&
        document.querySelector("#connection").dataset.phase === "connected" &&
        !document.querySelector(".open, .ghost"),
    );
  }

  /**
   * Says something, and waits until a part of the answer is to be read, which goes no further
   * before it is released, where the server can be told so.
   * @param {string} words
   */
  async sayHeld(words) {
    if (controlled) {
      await control("/settings", { pieces: 5 });
    }
    await this.say(words);
    await this.page.locator(".passage.open").waitFor();
  }

  /** What the page said when it had lost its connection, be that long ago or to come. */
  async lost() {
    const found = await this.page.waitForFunction(
      () => window.phases.find(({ phase }) => phase === "waiting")?.text,
    );
    return found.jsonValue();
  }

  /** @param {string} phase */
  async connection(phase) {
    await this.page.locator(`#connection[data-phase="${phase}"]`).waitFor();
  }

  /** What is to be read: who, and the plain text. */
  shown() {
    return this.page.locator("#transcript > .said, #transcript > .passage").evaluateAll((boxes) =>
      boxes.map((box) => ({
        role: box.classList.contains("said") ? "user" : "assistant",
        text: [...box.querySelectorAll("p")].map((one) => one.textContent).join("\n"),
      })),
    );
  }

  /** The transcript as the server has it, in the same form. */
  async transcript() {
    const headers = key === undefined ? {} : { Authorization: `Bearer ${key}` };
    const url = `${base}/v1/sessions/${this.sessionId}/messages?limit=1000`;
    const response = await fetch(url, { headers });
    const { messages } = await response.json();
    return messages
      .map(({ message }) => ({ role: message.role, text: plain(textOf(message)) }))
      .filter(({ role, text }) => ["user", "assistant"].includes(role) && text !== "");
  }

  /** What is shown is the transcript, no word less and none twice. */
  async agrees() {
    const transcript = await this.transcript();
    assert.deepEqual(await this.shown(), transcript);
    return transcript;
  }

  /**
   * How the answer to something grew.
   * @param {string} words
   * @returns {Promise<string[]>} its different texts, in order
   */
  async growth(words) {
    await this.page.evaluate(() => {
      window.seen = [];
      const transcript = document.querySelector("#transcript");
      const look = () => {
        const text = document.querySelector(".passage.open")?.textContent ?? "";
        if (text !== "" && text !== window.seen.at(-1)) {
          window.seen.push(text);
        }
      };
      window.looking = new MutationObserver(look);
      window.looking.observe(transcript, { subtree: true, childList: true, characterData: true });
    });
    await this.sayHeld(words);
    if (isStub) {
      for (const pieces of [10, 15]) {
        const before = await this.page.evaluate(() => window.seen.length);
        await control("/settings", { pieces });
        await this.page.waitForFunction((steps) => window.seen.length > steps, before);
      }
    }
    await release();
    await this.settle();
    return this.page.evaluate(() => {
      window.looking.disconnect();
      return window.seen;
    });
  }
}

/** Keeps, in the page, what was told of the connection: a phase may be over before anybody looks. */
function notePhases() {
  window.phases = [];
  const look = () => {
    const line = document.querySelector("#connection");
    if (line && line.dataset.phase !== window.phases.at(-1)?.phase) {
      window.phases.push({ phase: line.dataset.phase, text: line.innerText });
    }
  };
  const how = { subtree: true, childList: true, attributes: true, attributeFilter: ["data-phase"] };
  new MutationObserver(look).observe(document, how);
}
