// Passages taken away: what this answer is worth then, and which answer is the best.

import { ask } from "./api.js";
import { inWords, logLikelihood, nats, posteriorsOf, signed, times } from "./numbers.js";
import { el, isolated } from "./text.js";

export class Evidence {
  /**
   * on: current() has request, answer and off; place(z) gives the element beside the passage; shown(seen) shows the
   * posteriors and tokens of an answer, by the current answer's passages; fail(error).
   */
  constructor(on) {
    Object.assign(this, { on, running: null });
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  update() {
    this.stop();
    const { answer, off } = this.on.current();
    const last = [...off].at(-1) ?? null;
    const place = this.on.place(last);
    if (place === null) {
      this.on.shown(null);
      return;
    }
    const kept = answer.sources.map((_, z) => z).filter((z) => !off.has(z));
    if (kept.length === 0) {
      const worth = answer.closed_book_log_prob === null ? -Infinity : answer.closed_book_log_prob;
      place.replaceChildren(el("p", { class: "change" }, `All passages are gone. By heart, the model gives this answer a probability of ${inWords(worth)}.`));
      this.on.shown({ posteriors: answer.sources.map(() => 0), tokens: null, text: answer.answer, isFound: false });
      return;
    }
    this.on.shown(this.same(answer, kept));
    this.decode(place, kept, worthOf(answer, kept, off));
  }

  /** The current answer, had the others not been retrieved; null where a set or no passage shares in it. */
  same(answer, kept) {
    const found = posteriorsOf(answer, kept);
    return found === null ? null : { ...found, text: answer.answer, isFound: false };
  }

  async decode(place, kept, change) {
    const { request, answer, off } = this.on.current();
    const running = new AbortController();
    this.running = running;
    const again = el("p", { class: "again quiet" }, "Answering without it …");
    place.replaceChildren(again, ...change);
    place.scrollIntoView({ block: "nearest" }); // the button may be the last thing that is in sight
    // The same version of the memory, which may have been exchanged since.
    const without = [...off].map((z) => answer.sources[z].id);
    const body = { ...request, sentences: false, as_of: answer.memory_version, without };
    try {
      const found = await ask("v1/answer", { body, signal: running.signal });
      if (this.running !== running) return;
      const wasInSight = isInSight(place);
      const seen = seenFrom(answer, found);
      // One thing has one number: in low precision the same answer, scored again beside others, differs a little.
      if (seen.text === answer.answer) Object.assign(seen, this.same(answer, kept), { log_prob: logLikelihood(answer, kept), isFound: true });
      place.replaceChildren(saidOf(seen, answer), ...change);
      this.on.shown(seen);
      if (wasInSight) place.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (this.running !== running || error.name === "AbortError") return;
      again.remove();
      this.on.fail(error);
    }
  }
}

function isInSight(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** The words, and the numbers behind them. */
function worthOf(answer, kept, off) {
  const logProb = logLikelihood(answer, kept);
  const change = logProb - answer.log_prob;
  const gone = [...off].sort((a, b) => a - b).map((z) => `[${z + 1}]`).join(", ");
  const numbers = `log p(y|x) ${nats(logProb)} instead of ${nats(answer.log_prob)} (${signed(change)} nats)`;
  return [
    el("p", { class: "change" }, `Without ${gone} “`, isolated(answer.answer), `” is ${times(change)}.`),
    el("details", {}, el("summary", {}, "Numbers"), el("p", { class: "numbers" }, numbers)),
  ];
}

/** Fast Decoding knows of no more. */
const boundOf = ({ decoding }) => (decoding === "fast" ? "at least " : "");

function saidOf({ text, bound, log_prob: logProb }, answer) {
  const shown = el("strong", { dir: "auto" }, isolated(text || "(the empty answer)"));
  const said = text === answer.answer ? "The answer stays " : "The answer becomes ";
  return el("p", { class: "again" }, said, shown, `, with a probability of ${bound}${inWords(logProb)}`);
}

/** An answer's shares by the passages of another, those that are gone with none. */
function seenFrom(answer, found) {
  const at = new Map(found.sources.map(({ id }, z) => [id, z]));
  const place = answer.sources.map(({ id }) => at.get(id));
  const by = (shares) => place.map((z) => (z === undefined ? 0 : shares[z]));
  const tokens = found.tokens.map((token) => ({ ...token, posterior: by(token.posterior) }));
  const posteriors = by(found.sources.map((source) => source.posterior));
  return { posteriors, tokens, text: found.answer, log_prob: found.log_prob, bound: boundOf(found), isFound: true };
}
