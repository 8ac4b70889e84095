// The part of a passage that matters for an answer.

const SHORT = 220;
const BEFORE = 60;
const WORD = /[\p{L}\p{M}\p{N}]+/gu;

/** Start and end of the part with the most of the answer's words; the beginning, where it has none. The whole, if short. */
export function telling(text, words) {
  if (text.length <= SHORT * 1.3) return [0, text.length];
  const hits = [...text.matchAll(WORD)].filter((found) => words.has(found[0].toLowerCase())).map((found) => found.index);
  const within = (start) => new Set(hits.filter((hit) => hit >= start && hit < start + SHORT - BEFORE).map((hit) => text.slice(hit, hit + 12))).size;
  const best = hits.length === 0 ? 0 : hits.reduce((a, b) => (within(b) > within(a) ? b : a));
  const start = best <= BEFORE ? 0 : wordAfter(text, best - BEFORE);
  return [start, start + SHORT >= text.length ? text.length : wordBefore(text, start + SHORT)];
}

function wordAfter(text, place) {
  const found = text.indexOf(" ", place);
  return found === -1 || found > place + 30 ? place : found + 1;
}

function wordBefore(text, place) {
  const found = text.lastIndexOf(" ", place);
  return found < place - 30 ? place : found;
}
