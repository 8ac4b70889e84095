// How the number came about: the paper's equation with the numbers of this answer in it, and what memory adds.

import { fromLog, logarithm, logSumExp, nats, percent, signed, sum, times, valuesOf } from "./numbers.js";
import { bar, el, isolated, tokenName } from "./text.js";
import { nameOf } from "./passages.js";

const EQUATIONS = {
  sequence: ["p(y|x) = ", "Σ", "z", " p", "η", "(z|x) · p", "θ", "(y|x,z)"],
  token: ["p(y|x) = ", "Π", "i", " Σ", "z", " p", "η", "(z|x) · p", "θ", "(y", "i", "|x,z,y", "<i", ")"],
};

const EXPLAINED = {
  sequence:
    "RAG-Sequence: one passage z explains the whole answer y, and we do not know which; so the probabilities of all " +
    "ways to say y are added up. The share of a passage in that sum is its posterior, p(z|x,y); the table of words shows " +
    "the prior, p(z|x), then p(z|x,y≤i) after each word i.",
  token:
    "RAG-Token: each token may come from another passage. For each token the probabilities of all ways to say it are " +
    "added up, and the sums of all tokens are multiplied. The table of words shows the prior, p(z|x), then each token's " +
    "posterior, p(z|x,y_i,y<i).",
};

/** The nodes of the section. */
export function derivation(answer) {
  const table = answer.variant === "sequence" ? ofSequence(answer) : ofTokens(answer);
  const nodes = [el("p", { class: "equation" }, ...equation(answer.variant)), el("p", {}, EXPLAINED[answer.variant])];
  if (answer.decoding === "fast") {
    nodes.push(el("p", {}, "Fast Decoding counts p_θ as 0 where a passage's own beam did not hold the answer: the sum is a lower bound."));
  }
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The equation's numbers" }, table);
  const end = `log p(y|x) = ${nats(answer.log_prob)} nats, p(y|x) = ${fromLog(answer.log_prob)}.`;
  return [...nodes, scroll, el("p", { id: "derived" }, end)];
}

/** The parts of an equation; every second one after the first is lowered where it names an index. */
function equation(variant) {
  const lowered = new Set(["z", "i", "η", "θ", "<i"]);
  return EQUATIONS[variant].map((part) => (lowered.has(part) ? el("sub", {}, part) : part));
}

function ofSequence(answer) {
  const head = ["Passage", "p_η(z|x)", "p_θ(y|x,z)", "product", "share of the sum"];
  const ways = answer.log_p_eta.map((prior, k) => [logarithm(prior), sum(answer.log_p_theta[k].map(logarithm))]);
  const total = logSumExp(ways.map(([logPEta, logPTheta]) => logPEta + logPTheta));
  const rows = valuesOf(answer).map((places, k) => {
    const [logPEta, logPTheta] = ways[k];
    const share = percent(Math.exp(logPEta + logPTheta - total));
    const numbers = [fromLog(logPEta), fromLog(logPTheta), fromLog(logPEta + logPTheta), share];
    return numbered(places.length === 1 ? nameOf(answer.sources[places[0]], places[0]) : [nameOfValue(places)], numbers);
  });
  const foot = numbered(["Sum: p(y|x)"], ["", "", fromLog(answer.log_prob), "100 %"]);
  return tableOf("Each way to say the whole answer.", head, rows, foot);
}

function ofTokens(answer) {
  const numTokens = answer.log_p_theta[0].length;
  const names = valuesOf(answer).map(nameOfValue);
  const head = ["Token", ...names.map((name) => `p_η · p_θ of ${name}`), "sum"];
  const rows = [];
  for (let i = 0; i < numTokens; i += 1) {
    const ways = names.map((_, z) => logarithm(answer.log_p_eta[z]) + logarithm(answer.log_p_theta[z][i]));
    rows.push(numbered([nameOfToken(answer, i)], [...ways, logSumExp(ways)].map(fromLog)));
  }
  const foot = numbered(["Product: p(y|x)"], [...names.map(() => ""), fromLog(answer.log_prob)]);
  return tableOf("Each way to say each token.", head, rows, foot);
}

/** The passages of a value of z. */
const nameOfValue = (places) => (places.length === 0 ? "no passage" : places.map((z) => `[${z + 1}]`).join(" + "));

/** The end of the answer is a token, too; so is what was cut off at a stop string. */
function nameOfToken(answer, i) {
  if (i < answer.tokens.length) return isolated(tokenName(answer.tokens[i].text));
  return answer.hypotheses[0].finished && i === answer.log_p_theta[0].length - 1 ? "(end)" : "(not shown)";
}

function tableOf(caption, head, rows, foot) {
  const heads = head.map((name) => el("th", { scope: "col" }, name));
  const parts = [el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows), el("tfoot", {}, foot)];
  return el("table", {}, el("caption", {}, caption), ...parts);
}

const numbered = (name, numbers) =>
  el("tr", {}, el("th", { scope: "row" }, ...name), ...numbers.map((each) => el("td", {}, each)));

/** The answer's probability with and without the memory: bars of its mean probability a token. */
export function closedBook(answer) {
  const numTokens = answer.log_p_theta[0].length;
  const rows = [
    ["With these passages", "posterior", answer.log_prob],
    ["Closed book, without any", "prior", logarithm(answer.closed_book_log_prob)],
  ].map(([name, kind, logProb]) => {
    const each = Math.exp(logProb / numTokens);
    const said = `log p ${nats(logProb)}, ${percent(each)} a token`;
    return [el("dt", {}, name), el("dd", {}, bar(kind, each), el("span", {}, said))];
  });
  const gain = answer.log_prob - logarithm(answer.closed_book_log_prob);
  const said = `The passages make this answer ${times(gain).replace("as probable as before", "neither more nor less probable")} (${signed(gain)} nats).`;
  return [el("dl", { class: "shares stacked" }, ...rows.flat()), el("p", {}, said)];
}
