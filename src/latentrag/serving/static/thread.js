// A conversation: what was asked and answered before, and how its last question was read.

import { percent } from "./numbers.js";
import { el, visible } from "./text.js";

const READ_AS = { last: "alone", before: "with the turn before", all: "with all turns", rewrite: "as rewritten" };
const SAID_BY = { user: "Question", assistant: "Answer" };

export class Thread {
  /** part: hidden while there are no turns; list: of them. */
  constructor(part, list) {
    Object.assign(this, { part, list, messages: [] });
  }

  /** The fields of a request for a question after these turns. */
  asking(question) {
    return this.messages.length === 0 ? { question } : { messages: [...this.messages, { role: "user", content: question }] };
  }

  add(question, answer) {
    this.become([...this.messages, { role: "user", content: question }, { role: "assistant", content: answer }]);
  }

  become(messages) {
    this.messages = messages;
    const turns = messages.map(({ role, content }) =>
      el("li", { class: role }, el("span", { class: "quiet" }, `${SAID_BY[role]} `), el("bdi", {}, visible(content))));
    this.list.replaceChildren(...turns);
    this.part.hidden = messages.length === 0;
  }
}

/** What a request asks last. */
export const questionOf = ({ question, messages }) => (messages === undefined ? question : messages.at(-1).content);

/** What was said before that. */
export const turnsBefore = ({ messages }) => (messages === undefined ? [] : messages.slice(0, -1));

/** How the question was read, the most probable way first, as nodes; none for a question without turns before it. */
export function readAs(conversation) {
  if (conversation === undefined) return [];
  const { readings, trained, num_dropped: dropped } = conversation;
  const best = readings.toSorted((a, b) => b.posterior - a.posterior);
  const items = best.map(({ kind, text, prior, posterior }) =>
    el("li", {}, `${READ_AS[kind]}: ${percent(posterior)}, before the answer ${percent(prior)}`,
      el("span", { class: "quiet" }, " · ", el("bdi", {}, visible(text.replaceAll("\n", " / "))))));
  const learned = trained ? "" : " The probabilities before the answer were not trained with this model.";
  const left = dropped === 0 ? "" : ` The generator did not read the first ${dropped} turns.`;
  const summary = el("summary", {}, `How the question was read: ${READ_AS[best[0].kind]}, ${percent(best[0].posterior)}`);
  const said = `How probable each reading is once the answer is known, and before.${learned}${left}`;
  return [el("details", {}, summary, el("ul", {}, ...items), el("p", { class: "quiet" }, said))];
}
