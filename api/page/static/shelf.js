/** The shelf: sessions that were begun, stories and companions to begin with. */

import { button, byId, element, icon } from "./dom.js";

/** @typedef {{agent: string, story?: string, title: string, about: string}} Offer */

const SCENES = ["forest", "tide", "peaks", "stars"];
const SHOWN_SESSIONS = 6;

/**
 * What can be begun, as the server lists it.
 * @param {any[]} agents
 * @returns {{stories: Offer[], companions: Offer[]}}
 */
export function offers(agents) {
  const stories = agents.flatMap((agent) =>
    (agent.stories ?? []).map((/** @type {any} */ story) => ({
      agent: agent.name,
      story: story.name,
      title: story.title || story.name,
      about: story.description ?? "",
    })),
  );
  // The story agent alone, without a story, is nobody to talk to.
  const companions = agents
    .filter((agent) => (agent.stories ?? []).length === 0 && agent.name !== "story")
    .map((agent) => ({
      agent: agent.name,
      title: agent.title || agent.name,
      about: agent.description ?? "",
    }));
  return { stories, companions };
}

/**
 * Shows the shelf.
 * @param {any[]} agents
 * @param {any[]} sessions newest first
 * @param {(offer: Offer) => void} begin
 */
export function showShelf(agents, sessions, begin) {
  const { stories, companions } = offers(agents);
  const all = [...stories, ...companions];
  const parts = [
    part("Go on", "rows", sessions.slice(0, SHOWN_SESSIONS).map((one) => row(one, all))),
    part("Stories", "cards", stories.map((offer) => card(offer, "Begin", begin))),
    part("Companions", "cards", companions.map((offer) => card(offer, "Say hello", begin))),
  ];
  if (all.length === 0) {
    const words = "Nothing is on the shelf yet: no worker has told what it can play.";
    parts.push(element("p", "loading", words));
  }
  byId("shelf-lists").replaceChildren(...parts.filter((one) => one !== null));
}

/**
 * The name of a session: its own, its story's, or its agent's.
 * @param {{title?: string, story?: string | null, agent: string}} session
 * @param {Offer[]} all
 */
export function titleOf(session, all) {
  const offer = offerOf(session, all);
  return session.title || offer?.title || session.story || session.agent;
}

/**
 * @param {{story?: string | null, agent: string}} session
 * @param {Offer[]} all
 */
export function offerOf(session, all) {
  return all.find(
    (one) => one.agent === session.agent && (one.story ?? null) === (session.story ?? null),
  );
}

/**
 * @param {string} title
 * @param {string} kind
 * @param {HTMLElement[]} items
 */
function part(title, kind, items) {
  if (items.length === 0) {
    return null;
  }
  const heading = element("h2", "", title);
  const list = element("ul", kind, ...items.map((item) => element("li", "", item)));
  list.setAttribute("role", "list"); // without it, a list without bullets is none to Safari
  return element("section", "shelf-part", heading, list);
}

/**
 * @param {Offer} offer
 * @param {string} verb
 * @param {(offer: Offer) => void} begin
 */
function card(offer, verb, begin) {
  const words = element(
    "span",
    "card-words",
    element("span", "card-title", offer.title),
    element("span", "card-about", offer.about),
    element("span", "card-verb", verb, icon("arrow")),
  );
  const made = button("card", () => begin(offer), cover(offer), words);
  made.dataset.offer = offer.story ?? offer.agent;
  return made;
}

/**
 * @param {any} session
 * @param {Offer[]} all
 */
function row(session, all) {
  const when = element("span", "row-when", ago(session.updated_at));
  const title = element("span", "row-title", titleOf(session, all), when);
  const link = element("a", "row", cover(session), title, icon("arrow"));
  link.href = `#/session/${encodeURIComponent(session.id)}`;
  return link;
}

/** @param {{agent: string, story?: string | null}} of */
function cover({ agent, story }) {
  const made = element("span", `cover cover-${story ? sceneOf(story) : "hearth"}`);
  made.setAttribute("aria-hidden", "true");
  return made;
}

/** @param {string} name the same one has always the same picture */
function sceneOf(name) {
  if (/lamp|light|lantern/i.test(name)) {
    return "lamp";
  }
  let sum = 0;
  for (const point of name) {
    sum = (sum * 31 + (point.codePointAt(0) ?? 0)) % 65_521;
  }
  return SCENES[sum % SCENES.length];
}

/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60]];

/** @param {string} time */
function ago(time) {
  const seconds = (Date.parse(time) - Date.now()) / 1000;
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const unit = UNITS.find(([, size]) => Math.abs(seconds) >= size);
  return unit ? words.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
}
