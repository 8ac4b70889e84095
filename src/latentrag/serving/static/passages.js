// The list of passages: how much of the answer is due to each, what matters in it, and what happens without it.

import { logarithm, percent, signed } from "./numbers.js";
import { Neighbourhood, placeOf } from "./places.js";
import { telling } from "./snippets.js";
import { bar, el, isolated, marked, underlined, visible, wordsOf } from "./text.js";

/** What a passage is called: its number, by prior, and its title. */
export const nameOf = (source, z) => [`[${z + 1}] `, isolated(source.title || source.id)];

// Of these and of those after so many others less is shown.
const LITTLE = 0.01;
const MANY = 5;
const TAKE = "Try without this passage ";
const SENTENCES =
  "Behind each sentence: by how many nats log p(y|x) would change had the passage been without it; the more it would fall, the thicker the line.";

export class Passages {
  /** on: pin(z) and leaveOut(z) are called with the passage's index. */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    this.items = [];
  }

  /** Passages as retrieved; how much is due to them is not known yet. */
  begin(sources) {
    this.items = sources.map((source, z) => this.item(source, z));
    this.list.replaceChildren(...this.items.map((item) => item.root));
  }

  /** In order of posterior, with the answer's words marked. said: of each, what the answer is worth without it. */
  finish(answer, said) {
    const words = wordsOf(answer.answer);
    const order = answer.sources.map((_, z) => z);
    order.sort((a, b) => answer.sources[b].posterior - answer.sources[a].posterior);
    answer.sources.forEach((source, z) => this.complete(this.items[z], { source, words, said: said[z], answer }));
    this.list.replaceChildren(...order.map((z) => this.items[z].root));
    order.forEach((z, rank) => (this.items[z].rank = rank));
  }

  complete(item, { source, words, said, answer }) {
    const changes = source.sentences.map(({ start, end, log_prob_without: without }) => {
      const change = logarithm(without) - answer.log_prob;
      return { start, end, change, said: signed(change) };
    });
    item.mark = (found) => {
      const [start, end] = changes.length ? [0, source.text.length] : telling(source.text, found);
      const dots = (isCut) => (isCut ? ["…"] : []);
      const part = marked(source.text.slice(start, end), found);
      item.snippet.replaceChildren(...dots(start > 0), ...part, ...dots(end < source.text.length));
      item.whole.replaceChildren(...underlined(source.text, changes, found));
      item.isWhole = end - start === source.text.length && changes.length === 0;
    };
    item.mark(words);
    item.ofSentences.hidden = changes.length === 0;
    item.open(changes.length > 0);
    const parts = Object.entries(source.parts).filter(([name]) => name !== "null");
    const rows = [["Without it", said]];
    if (parts.length > 1) rows.push(["Logit of the prior", parts.map(([name, value]) => `${visible(name)} ${signed(value)}`).join(", ")]);
    item.numbers.append(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "wide" }, value)]));
    item.around = new Neighbourhood(source, answer.memory_version, words);
    item.place.after(item.around.root);
    item.inPlace.hidden = false;
    item.leaveOut.hidden = answer.sources.length < 2;
    item.pin.hidden = false;
    item.behind.hidden = false;
  }

  /** Marks the words of another answer. */
  mark(answer) {
    const words = wordsOf(answer);
    for (const item of this.items) item.mark(words);
  }

  /** Shows which passage is pinned, which are left out, how much is due to each, and the pinned token's shares. */
  update({ pinned, off, token, posteriors }) {
    this.items.forEach((item, z) => {
      const isOff = off.has(z);
      item.root.classList.toggle("pinned", pinned === z);
      item.root.classList.toggle("off", isOff);
      item.pin.setAttribute("aria-pressed", pinned === z);
      item.leaveOut.setAttribute("aria-pressed", isOff);
      item.leaveOut.firstChild.textContent = isOff ? "Put it back " : TAKE;
      if (posteriors !== null) item.due(posteriors[z]);
      item.ofToken.replaceChildren();
      if (token !== null) item.ofToken.append(...share(`For “${visible(token.name)}”`, "token", token.posterior[z]));
    });
  }

  /** Where what is said about leaving out passage z has its place; null: nowhere. */
  effectAt(z) {
    for (const item of this.items) item.effect.hidden = true;
    if (z === null) return null;
    this.items[z].effect.hidden = false;
    return this.items[z].effect;
  }

  item(source, z) {
    const snippet = el("p", { class: "text snippet", dir: "auto" }, visible(source.text.slice(0, 160)), source.text.length > 160 ? "…" : "");
    const whole = el("p", { class: "text whole", dir: "auto", hidden: true }, visible(source.text));
    const shareOf = el("dl", { class: "shares share" }, ...share("Before the answer", "prior", source.prior));
    const ofToken = el("dl", { class: "shares" });
    const numbers = el("dl", { class: "shares" }, ...share("Prior", "prior", source.prior));
    const pin = button("Mark its words ", z, { "aria-pressed": "false" });
    const leaveOut = button(TAKE, z, { "aria-pressed": "false", class: "take" });
    const more = button("All of it ", z, { "aria-expanded": "false", class: "plain" });
    const inPlace = button("In its place ", z, { "aria-expanded": "false", class: "plain" });
    const place = el("p", { class: "quiet place" }, placeOf(source), " ");
    const behind = button("Numbers ", z, { "aria-expanded": "false", class: "plain" });
    const details = el("div", { class: "behind", hidden: true }, numbers, el("p", {}, pin));
    const effect = el("div", { class: "effect", role: "status", hidden: true });
    const ofSentences = el("p", { class: "quiet", hidden: true }, SENTENCES);
    const head = el("div", { class: "head" }, el("h3", {}, ...nameOf(source, z)), leaveOut);
    const root = el("li", {}, head, shareOf, ofToken, effect, snippet, whole, ofSentences, place, details);
    place.append(more, " ", inPlace, " ", behind);
    const item = { root, snippet, whole, ofSentences, ofToken, numbers, pin, leaveOut, more, inPlace, place, behind, effect };
    item.open = (isOpen) => {
      whole.hidden = !isOpen;
      snippet.hidden = isOpen;
      more.setAttribute("aria-expanded", isOpen);
      more.firstChild.textContent = isOpen ? "Less of it " : "All of it ";
    };
    item.due = (posterior) => {
      const isLittle = item.rank >= MANY || posterior < LITTLE;
      shareOf.replaceChildren(...share("Because of it", "posterior", posterior));
      root.classList.toggle("little", isLittle);
      more.hidden = item.isWhole && !isLittle;
    };
    pin.addEventListener("click", () => this.on.pin(z));
    leaveOut.addEventListener("click", () => this.on.leaveOut(z));
    behind.addEventListener("click", () => {
      details.hidden = !details.hidden;
      behind.setAttribute("aria-expanded", !details.hidden);
    });
    more.addEventListener("click", () => item.open(whole.hidden));
    inPlace.addEventListener("click", async () => {
      inPlace.setAttribute("aria-expanded", item.around.root.hidden);
      await item.around.toggle();
    });
    return item;
  }
}

/** Hidden until there is an answer. Buttons of several passages must not have the same name; those who see know. */
const button = (name, z, attributes) => el("button", { type: "button", hidden: true, ...attributes }, name, number(z));

const number = (z) => el("span", { class: "unseen" }, `number ${z + 1}`);

const share = (name, kind, p) => [el("dt", {}, name), el("dd", {}, bar(kind, p), el("span", {}, percent(p)))];
