// A conversation: what was asked and answered before, and how its last question was read.

import { percent } from "./numbers.js";
import { el, visible } from "./text.js";

const READ_AS = { last: "alone", before: "with the turn before", all: "with all turns", rewrite: "as rewritten" };
const SAID_BY = { user: "Question", assistant: "Answer" };
const MAX_MESSAGES = 100; // the server takes no more

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

/** The body of a request as it is sent: without the oldest exchanges where it has more messages than the server takes. */
export function sendable(body) {
  if (!Array.isArray(body?.messages) || body.messages.length <= MAX_MESSAGES) return body;
  const newest = body.messages.slice(-MAX_MESSAGES);
  return { ...body, messages: newest.slice(newest.findIndex(({ role }) => role === "user")) };
}

/**
 * How the question of a request was read, the most probable way first, as nodes; none for one without turns before it.
 */
export function readAs(conversation, request) {
  if (conversation === undefined) return [];
  const { readings, trained } = conversation;
  const dropped = conversation.num_dropped + turnsBefore(request).length - turnsBefore(sendable(request)).length;
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
