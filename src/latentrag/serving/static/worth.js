// What an answer is worth, in words first; the paper's terms are one step behind.

import { inWords, logLikelihood, logarithm, nats, percent, signed, times } from "./numbers.js";
import { isolated, visible } from "./text.js";

const at = (id) => document.getElementById(id);
const SHORT = 40; // characters of an answer that is quoted

export const VARIANTS = { sequence: "RAG-Sequence", token: "RAG-Token" };

export function sayWhatItIsWorth(answer) {
  const bound = answer.decoding === "fast" ? "at least " : "";
  const closed = logarithm(answer.closed_book_log_prob);
  const gain = times(answer.log_prob - closed).replace("as probable as before", "neither more nor less probable");
  const sure = answer.confidence === undefined ? "" : `How sure: right with a probability of ${percent(answer.confidence)}.`;
  at("missing").textContent = incomplete(answer);
  at("sure").textContent = sure;
  const isShort = answer.answer.trim() !== "" && answer.answer.length <= SHORT;
  const name = isShort ? ["“", isolated(answer.answer.trim()), "”"] : ["this answer"];
  at("probability").replaceChildren("The model gives ", ...name, ` a probability of ${bound}${inWords(answer.log_prob)}.`);
  at("without-any").textContent = `Without any passage: ${inWords(closed)}. The passages make it ${gain}.`;
  at("facts").textContent =
    `${VARIANTS[answer.variant]}, ${answer.decoding} decoding, memory version ${answer.memory_version}. ` +
    `log p(y|x) = ${bound}${nats(answer.log_prob)} nats.${byHeart(answer)}`;
}

/** What a reader has to know where parts of the memory did not answer. */
function incomplete({ missing }) {
  return missing === undefined ? "" : `Incomplete: ${visible(missing.join(", "))} did not answer, so passages there could not be found.`;
}

/** What the answer is worth with these passages alone. */
export function saidWithout(answer, kept) {
  if (kept.length === 0) return "the only passage";
  const logProb = logLikelihood(answer, kept);
  return `log p(y|x) ${nats(logProb)} (${signed(logProb - answer.log_prob)})`;
}

/** How much of the answer the generator knew without a passage, where that is a source. */
function byHeart({ no_passage: share }) {
  return share === undefined ? "" : ` No passage: prior ${percent(share.prior)}, posterior ${percent(share.posterior)}.`;
}
