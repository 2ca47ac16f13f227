/** The small panel below an answer: what was remembered for it, and what it cost. */

import { wordsOfUsage } from "./cost.js";
import { element } from "./dom.js";
import { wordsOfLeftOut } from "./recalled.js";

/**
 * @param {import("./blocks.js").WhyBlock} block
 * @param {(taskId: string) => Promise<import("./cost.js").Usage>} ask what a task used
 * @returns {HTMLElement}
 */
export function whyElement({ taskId, recalled }, ask) {
  const cost = element("p", "why-cost", "Looking up what it cost …");
  const made = element("details", "why", element("summary", "", "Why this answer?"), ...told(recalled), cost);
  made.addEventListener(
    "toggle",
    () => {
      ask(taskId).then(
        (usage) => {
          cost.textContent = `This answer: ${wordsOfUsage(usage)}.`;
        },
        () => {
          cost.textContent = "What it cost can't be told just now.";
        },
      );
    },
    { once: true },
  );
  return made;
}

/** @param {import("./recalled.js").Recalled} recalled */
function told(recalled) {
  const nodes =
    recalled.memories.length > 0
      ? [
          element("p", "", "Remembered for it:"),
          element("ul", "", ...recalled.memories.map((text) => element("li", "", text))),
        ]
      : [element("p", "", "Nothing was remembered for it but what you have just talked about.")];
  const left = wordsOfLeftOut(recalled);
  return left === "" ? nodes : [...nodes, element("p", "", `Left out: ${left}.`)];
}
