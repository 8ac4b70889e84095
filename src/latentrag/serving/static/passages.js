// The list of passages: prior beside posterior, pin, leave out.

import { logarithm, nats, percent, signed } from "./numbers.js";
import { bar, el, isolated, marked, underlined, visible, wordsOf } from "./text.js";

/** What a passage is called: its number, by prior, and its title. */
export const nameOf = (source, z) => [`[${z + 1}] `, isolated(source.title || source.id)];

const SENTENCES =
  "Behind each sentence: by how many nats log p(y|x) would change had the passage been without it; the more it would fall, the thicker the line.";

export class Passages {
  /** on: pin(z) and leaveOut(z) are called with the passage's index. */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    this.items = [];
  }

  /** Passages as retrieved; their posteriors are not known yet. */
  begin(sources) {
    this.items = sources.map((source, z) => this.item(source, z));
    this.list.replaceChildren(...this.items.map((item) => item.root));
  }

  /** In order of posterior, with the answer's words marked. ifGone: log p(y|x) without each; null for the only one. */
  finish(answer, ifGone) {
    const words = wordsOf(answer.answer);
    const order = answer.sources.map((_, z) => z);
    order.sort((a, b) => answer.sources[b].posterior - answer.sources[a].posterior);
    answer.sources.forEach((source, z) => {
      const item = this.items[z];
      const changes = source.sentences.map(({ start, end, log_prob_without: without }) => {
        const change = logarithm(without) - answer.log_prob;
        return { start, end, change, said: signed(change) };
      });
      item.text.replaceChildren(...underlined(source.text, changes, words));
      item.ofSentences.hidden = changes.length === 0;
      item.shares.append(...share("Posterior", "posterior", source.posterior));
      const parts = Object.entries(source.parts).filter(([name]) => name !== "null");
      if (parts.length > 1) {
        const said = parts.map(([name, value]) => `${visible(name)} ${signed(value)}`).join(", ");
        item.shares.append(el("dt", {}, "Logit of the prior"), el("dd", { class: "wide" }, said));
      }
      const isOnly = ifGone === null;
      const change = isOnly ? "the only passage" : `log p(y|x) ${nats(ifGone[z])} (${signed(ifGone[z] - answer.log_prob)})`;
      item.shares.append(el("dt", {}, "Without it"), el("dd", { class: "wide" }, change));
      item.actions.hidden = false;
      item.leaveOut.hidden = isOnly;
    });
    this.list.replaceChildren(...order.map((z) => this.items[z].root));
  }

  /** Shows which passage is pinned, which are left out, and the pinned token's posteriors. */
  update({ pinned, off, token }) {
    this.items.forEach((item, z) => {
      item.root.classList.toggle("pinned", pinned === z);
      item.root.classList.toggle("off", off.has(z));
      item.pin.setAttribute("aria-pressed", pinned === z);
      item.leaveOut.setAttribute("aria-pressed", off.has(z));
      item.ofToken.replaceChildren();
      if (token !== null) item.ofToken.append(...share(`For “${visible(token.name)}”`, "token", token.posterior[z]));
    });
  }

  item(source, z) {
    const text = el("p", { class: "text", dir: "auto" }, visible(source.text));
    const shares = el("dl", { class: "shares" }, ...share("Prior", "prior", source.prior));
    const ofToken = el("dl", { class: "shares" });
    const pin = el("button", { type: "button", "aria-pressed": "false" }, "Pin ", number(z));
    const leaveOut = el("button", { type: "button", "aria-pressed": "false" }, "Leave out ", number(z));
    pin.addEventListener("click", () => this.on.pin(z));
    leaveOut.addEventListener("click", () => this.on.leaveOut(z));
    const actions = el("p", { class: "actions", hidden: true }, pin, leaveOut);
    const place = source.page === null ? source.source : `${source.source}, page ${source.page}`;
    const ofSentences = el("p", { class: "quiet", hidden: true }, SENTENCES);
    const root = el(
      "li",
      {},
      el("h3", {}, ...nameOf(source, z)),
      shares,
      ofToken,
      actions,
      text,
      ofSentences,
      el("p", { class: "quiet" }, isolated(place || source.id)),
    );
    return { root, text, ofSentences, shares, ofToken, pin, leaveOut, actions };
  }
}

/** Buttons of several passages must not have the same name; those who see know which one they belong to. */
const number = (z) => el("span", { class: "unseen" }, `passage ${z + 1}`);

const share = (name, kind, p) => [el("dt", {}, name), el("dd", {}, bar(kind, p), el("span", {}, percent(p)))];
