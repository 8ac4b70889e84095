// Other ways to answer the current question: the other model, other decodings, another version of the memory.

import { Failure, ask } from "./api.js";
import { logLikelihood, milliseconds, nats, probability } from "./numbers.js";
import { el, visible } from "./text.js";

/** One way: its answer with its numbers, or what kept it from answering. */
export class Way {
  /** options: what it asks otherwise; show(options, answer) is called when it is to become the current answer. */
  constructor(name, options, show) {
    Object.assign(this, { options, answer: null, took: null });
    this.said = el("div");
    this.button = el("button", { type: "button", hidden: true }, "Show this ", el("span", { class: "unseen" }, name));
    this.button.addEventListener("click", () => show(options, this.answer));
    this.root = el("li", {}, el("h3", {}, name), this.said, el("p", { class: "actions" }, this.button));
  }

  say(text, kind = "quiet") {
    this.said.replaceChildren(el("p", { class: kind }, visible(text)));
  }

  /** Asks over the version that the current answer came from. What goes wrong is shown and not thrown. */
  async ask({ request, answer }, signal) {
    const start = performance.now();
    this.say("Decoding …");
    try {
      const body = { ...request, as_of: answer.memory_version, ...this.options };
      const found = await ask("v1/answer", { body, signal });
      signal.throwIfAborted(); // it came just when nobody wanted it any more
      this.answer = found;
      this.took = performance.now() - start;
    } catch (error) {
      if (error.name === "AbortError") this.say("Not asked.");
      else if (error instanceof Failure) this.say(error.message, "bad");
      else throw error;
    }
  }

  /** Shows the answer, beside the one that is current. */
  update(current) {
    const { answer } = this;
    if (answer === null) return;
    const bound = answer.decoding === "fast" ? "at least " : "";
    const rows = [
      ["Probability", bound + probability(answer.log_prob)],
      ["log p(y|x)", `${bound}${nats(answer.log_prob)}`],
      ["Agreement", agreement(answer, current)],
      ["Time", milliseconds(this.took)],
    ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    const text = el("p", { class: "found", dir: "auto" }, visible(answer.answer || "(the empty answer)"));
    this.said.replaceChildren(text, el("dl", {}, ...rows));
    const isCurrent = ["variant", "decoding", "memory_version"].every((name) => answer[name] === current[name]);
    this.root.classList.toggle("current", isCurrent);
    this.button.hidden = isCurrent;
  }
}

/**
 * How an answer agrees with the current one. Over the same passages both models have the same p_η and p_θ, so what
 * the current answer is worth here is known without asking.
 */
function agreement(answer, current) {
  if (answer.answer === current.answer) return "the same as the current answer";
  const ids = new Set(current.sources.map((source) => source.id));
  const numShared = answer.sources.filter((source) => ids.has(source.id)).length;
  if (answer.memory_version !== current.memory_version) {
    return `another answer, from ${answer.sources.length} passages, ${numShared} of them the same`;
  }
  const all = current.sources.map((_, z) => z);
  const worth = logLikelihood({ ...current, variant: answer.variant }, all);
  return ["another answer; the current one has log p ", current.decoding === "fast" ? "of at least " : "", nats(worth), " here"].join("");
}

const ALL = [
  ["RAG-Sequence, exact", { variant: "sequence", decoding: "exact" }],
  ["RAG-Sequence, thorough", { variant: "sequence", decoding: "thorough" }],
  ["RAG-Sequence, fast", { variant: "sequence", decoding: "fast" }],
  ["RAG-Token, exact", { variant: "token", decoding: "exact" }],
];

/** Both models and every decoding side by side, asked one after another: at once they would wait for each other. */
export class Comparison {
  /** details: asks when it is opened; on: current() has the request and its answer, show(options, answer). */
  constructor(details, { list, status, stop, again }, on) {
    Object.assign(this, { details, list, status, stopping: stop, again, on, running: null });
    details.addEventListener("toggle", () => (details.open ? this.run() : this.stop()));
    stop.addEventListener("click", () => this.stop());
    again.addEventListener("click", () => this.run());
    this.clear();
  }

  /** Forgets the answers; closed until it is asked for. */
  clear() {
    this.stop();
    this.details.open = false;
    this.ways = ALL.map(([name, options]) => new Way(name, options, this.on.show));
    this.list.replaceChildren(...this.ways.map((way) => way.root));
    this.say("");
  }

  /** Asks those that have not answered yet. */
  async run() {
    this.stop();
    const { request, answer } = this.on.current();
    if (answer === null) return;
    const running = new AbortController();
    this.running = running;
    this.stopping.hidden = false;
    this.again.hidden = true;
    const asked = this.ways.filter((way) => way.answer === null);
    for (const way of asked) way.say("Waiting …");
    for (const [i, way] of asked.entries()) {
      if (!running.signal.aborted) this.say(`Asking ${i + 1} of ${asked.length} …`);
      await way.ask({ request, answer }, running.signal); // where that is stopped, each says so
      if (!running.signal.aborted) way.update(this.on.current().answer);
    }
    if (this.running === running) this.stop();
  }

  stop() {
    this.running?.abort();
    this.running = null;
    this.stopping.hidden = true;
    const left = this.ways?.filter((way) => way.answer === null).length ?? 0;
    this.again.hidden = left === 0;
    this.say(left === 0 ? "All have answered." : `${left} have not answered.`);
  }

  say(text) {
    this.status.textContent = text;
  }

  /** Another answer is the current one. */
  update(current) {
    for (const way of this.ways) way.update(current);
  }
}
