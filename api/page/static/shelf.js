/** The shelf: sessions that were begun, stories and companions to begin with. */

import { button, byId, element, icon } from "./dom.js";

/** @typedef {{agent: string, story?: string, title: string, about: string}} Offer */
/** @typedef {{sessions: any[], next: string | null}} Page */

/**
 * @typedef {object} Deeds
 * @property {(offer: Offer) => Promise<void>} begin
 * @property {(before: string) => Promise<Page | undefined>} older
 */

const SCENES = ["forest", "tide", "peaks", "stars", "lamp"];

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
 * @param {Page} recent
 * @param {Deeds} deeds
 */
export function showShelf(agents, recent, deeds) {
  const { stories, companions } = offers(agents);
  const all = [...stories, ...companions];
  const covers = coversOf(stories);
  const rows = (/** @type {Page} */ page) => page.sessions.map((one) => row(one, all, covers));
  const cards = (/** @type {Offer[]} */ some, /** @type {string} */ verb) =>
    some.map((offer) => card(offer, verb, covers, deeds.begin));
  const parts = [
    part("Go on", "rows", rows(recent), olderButton(recent, deeds, rows)),
    part("Stories", "cards", cards(stories, "Begin")),
    part("Companions", "cards", cards(companions, "Say hello")),
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
 * @param {...Node} more
 */
function part(title, kind, items, ...more) {
  if (items.length === 0) {
    return null;
  }
  const heading = element("h2", "", title);
  const list = element("ul", kind, ...items.map((item) => element("li", "", item)));
  list.setAttribute("role", "list"); // without it, a list without bullets is none to Safari
  return element("section", "shelf-part", heading, list, ...more);
}

/**
 * A button that puts the next page of sessions behind those that are shown.
 * @param {Page} page
 * @param {Deeds} deeds
 * @param {(page: Page) => HTMLElement[]} rows
 */
function olderButton(page, deeds, rows) {
  let { next } = page;
  const made = button("quiet older", async () => {
    const before = next;
    if (before === null) {
      return; // they are on their way
    }
    next = null;
    const older = await deeds.older(before);
    const items = older ? rows(older).map((item) => element("li", "", item)) : [];
    made.previousElementSibling?.append(...items);
    items[0]?.querySelector("a")?.focus();
    next = older ? older.next : before;
    made.hidden = next === null;
  });
  made.append("Show older ones");
  made.hidden = next === null;
  return made;
}

/**
 * @param {Offer} offer
 * @param {string} verb
 * @param {Map<string, string>} covers
 * @param {(offer: Offer) => Promise<void>} begin
 */
function card(offer, verb, covers, begin) {
  const words = element(
    "span",
    "card-words",
    element("span", "card-title", offer.title),
    element("span", "card-about", offer.about),
    element("span", "card-verb", verb, icon("arrow")),
  );
  const made = button("card", async () => {
    made.setAttribute("aria-disabled", "true");
    await begin(offer);
    made.removeAttribute("aria-disabled");
  });
  made.append(cover(offer, covers), words);
  made.dataset.offer = offer.story ?? offer.agent;
  return made;
}

/**
 * @param {any} session
 * @param {Offer[]} all
 * @param {Map<string, string>} covers
 */
function row(session, all, covers) {
  const when = element("span", "row-when", ago(session.updated_at));
  const title = element("span", "row-title", titleOf(session, all), when);
  const link = element("a", "row", cover(session, covers), title, icon("arrow"));
  link.href = `#/session/${encodeURIComponent(session.id)}`;
  return link;
}

/**
 * @param {{story?: string | null}} of
 * @param {Map<string, string>} covers
 */
function cover({ story }, covers) {
  const scene = story ? (covers.get(story) ?? SCENES[0]) : "hearth";
  const made = element("span", `cover cover-${scene}`);
  made.setAttribute("aria-hidden", "true");
  return made;
}

/**
 * A picture for each story: one that fits its name, else one that no story before it has.
 * @param {Offer[]} stories
 */
function coversOf(stories) {
  /** @type {Map<string, string>} */
  const covers = new Map();
  for (const { story = "", title } of stories) {
    const used = new Set(covers.values());
    const free = SCENES.find((scene) => !used.has(scene)) ?? SCENES[covers.size % SCENES.length];
    covers.set(story, sceneNamedIn(`${story} ${title}`) ?? free);
  }
  return covers;
}

/** @type {[RegExp, string][]} */
const SUBJECTS = [
  [/lamp|light|lantern/i, "lamp"],
  [/sea|ship|ferry|boat|tide|island|harbou?r/i, "tide"],
  [/wood|forest|tree|garden/i, "forest"],
  [/mountain|snow|peak|pass\b/i, "peaks"],
  [/star|night|sky/i, "stars"],
];

/** @param {string} name */
function sceneNamedIn(name) {
  return SUBJECTS.find(([subject]) => subject.test(name))?.[1];
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
