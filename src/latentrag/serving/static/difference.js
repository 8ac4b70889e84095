// What differs between the version of the memory that is served and the one that is chosen.

import { Failure, ask } from "./api.js";
import { el, isolated, visible } from "./text.js";
import { Way } from "./ways.js";

const LISTED = 20;
const KINDS = [["added", "Added"], ["changed", "Changed"], ["removed", "Removed"]];

export class Difference {
  /** details: asks when it is opened; on: current() has the request and its answer, show(options, answer). */
  constructor(details, on) {
    this.title = el("h2");
    this.status = el("p", { role: "status" });
    this.lists = el("div");
    this.button = el("button", { type: "button" }, "Ask this version the same question");
    this.ways = el("ol", { class: "ways" });
    this.actions = el("div", { hidden: true }, el("p", { class: "actions" }, this.button), this.ways);
    details.append(el("summary", {}, this.title), this.status, this.lists, this.actions);
    Object.assign(this, { details, on, served: null, chosen: null, running: null, asking: null, way: null });
    details.addEventListener("toggle", () => (details.open ? this.load() : this.running?.abort()));
    this.button.addEventListener("click", () => this.askIt());
  }

  /** The versions to compare; null for none. */
  choose(served, chosen) {
    if (served === this.served && chosen === this.chosen) return;
    Object.assign(this, { served, chosen });
    this.forget();
    this.running?.abort();
    this.say("");
    this.details.hidden = served === null || chosen === null;
    this.title.textContent = `How version ${visible(String(chosen))} differs from ${served}, which is served`;
    if (this.details.hidden) this.details.open = false;
    if (this.details.open) this.load();
  }

  async load() {
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    this.say("Comparing …");
    try {
      const between = new URLSearchParams({ from: this.served, to: this.chosen, limit: LISTED });
      const found = await ask(`v1/memory/diff?${between}`, { signal: running.signal });
      running.signal.throwIfAborted();
      this.say(counted(found));
      this.lists.replaceChildren(...listed(found));
    } catch (error) {
      if (this.running !== running || error.name === "AbortError") return;
      if (!(error instanceof Failure)) throw error;
      this.say(visible(error.message), true);
    }
  }

  say(text, isBad = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bad", isBad);
    this.lists.replaceChildren();
  }

  /** The current question, answered from the chosen version. */
  async askIt() {
    this.forget();
    this.asking = new AbortController();
    this.way = new Way(`Version ${visible(String(this.chosen))}`, { as_of: this.chosen }, this.on.show);
    this.update();
    this.ways.replaceChildren(this.way.root);
    const { way } = this;
    await way.ask(this.on.current(), this.asking.signal);
    if (this.way === way) this.update();
  }

  /** Another answer is the current one, or none is. */
  update() {
    const { answer } = this.on.current();
    this.actions.hidden = answer === null;
    if (answer !== null) this.way?.update(answer);
  }

  /** What the version has answered, or is about to. */
  forget() {
    this.asking?.abort();
    this.way = null;
    this.ways.replaceChildren();
  }
}

function counted(found) {
  const counts = KINDS.map(([kind]) => `${found[kind].count} ${kind}`).join(", ");
  return `From version ${found.from} to ${found.to}: ${counts}.`;
}

function listed(found) {
  const nodes = [];
  if (found.reencoded) {
    const { from, to } = found.encoders;
    nodes.push(el("p", {}, "The vectors are by ", isolated(to), " instead of ", isolated(from), "."));
  }
  for (const [kind, name] of KINDS) {
    const { count, passages } = found[kind];
    if (count === 0) continue;
    const items = passages.map(({ id, title }) => el("li", {}, isolated(title || id), " ", el("span", { class: "quiet" }, isolated(id))));
    if (count > passages.length) items.push(el("li", { class: "quiet" }, `and ${count - passages.length} more`));
    nodes.push(el("h3", {}, name), el("ul", { class: kind }, ...items));
  }
  return nodes;
}
