// The page: a question, its answer as it comes, and what the answer would be otherwise.

import { Failure, ask, keepKey, stream } from "./api.js";
import { closedBook, derivation } from "./derivation.js";
import { Difference } from "./difference.js";
import { Feedback } from "./feedback.js";
import { HeatMap } from "./heatmap.js";
import { read, written } from "./link.js";
import { MemoryChooser } from "./memory.js";
import { logLikelihood, nats, percent, probability, signed, times } from "./numbers.js";
import { Passages } from "./passages.js";
import { el, isolated, tokenName, visible } from "./text.js";
import { Comparison } from "./ways.js";

const at = (id) => document.getElementById(id);
const form = at("ask");
const VARIANTS = { sequence: "RAG-Sequence", token: "RAG-Token" };
const NOTHING_PINNED = { token: null, passage: null };

// What is shown: the request, the answer once it is whole, passages that are left out, what is pinned; what a link holds.
const state = { request: null, answer: null, tokens: [], off: new Set(), pinned: { ...NOTHING_PINNED }, link: null, running: null, again: null, keepsFeedback: false };

const current = () => state;
const difference = new Difference(at("difference"), { current, show });
const memory = new MemoryChooser(at("as_of"), at("use"), at("memory"), (served, chosen) => difference.choose(served, chosen));
const comparing = { list: at("ways"), status: at("compare-status"), stop: at("stop-comparing"), again: at("compare-again") };
const comparison = new Comparison(at("comparison"), comparing, { current, show });
const passages = new Passages(at("passages"), { pin: pinPassage, leaveOut });
const feedback = new Feedback({ current: () => state.answer, fail });
const heatMap = new HeatMap(at("heat-map"), { pinToken, pinPassage });

// Asking

function requested() {
  const fields = new FormData(form);
  const body = { question: fields.get("q"), decoding: fields.get("decoding") };
  if (fields.get("variant")) body.variant = fields.get("variant");
  if (fields.get("sentences")) body.sentences = true;
  if (fields.get("where").trim()) body.where = fields.get("where").trim();
  if (fields.get("k")) body.k = Number(fields.get("k"));
  if (fields.get("as_of")) body.as_of = /^\d+$/.test(fields.get("as_of")) ? Number(fields.get("as_of")) : fields.get("as_of");
  return body;
}

async function answerQuestion() {
  begin(requested());
  const running = new AbortController();
  state.running = running;
  comparison.clear();
  difference.forget();
  difference.update();
  at("result").hidden = true;
  at("answer").setAttribute("aria-busy", "true");
  at("cancel").hidden = false;
  say("Retrieving passages …");
  try {
    if (at("key").value) keepKey(at("key").value);
    await (state.request.decoding === "exact" ? streamed(running.signal) : whole(running.signal));
    say("Done.");
  } catch (error) {
    if (state.running !== running) return;
    if (error.name === "AbortError") say("Cancelled.");
    else fail(error);
  } finally {
    if (state.running === running) ended();
  }
}

async function streamed(signal) {
  for await (const [name, data] of stream("v1/answer/stream", { body: state.request, signal })) {
    if (name === "sources") retrieved(data);
    if (name === "token") decided(data);
    if (name === "answer") finished(data);
  }
  if (state.answer === null) throw new Failure("The connection ended before the answer did; ask again.");
}

/** Thorough and Fast Decoding choose when all is decoded: nothing can be shown before. */
async function whole(signal) {
  const answer = await ask("v1/answer", { body: state.request, signal });
  retrieved(answer);
  answer.tokens.forEach(decided);
  finished(answer);
}

// Showing

function begin(request) {
  state.running?.abort();
  state.again?.abort();
  Object.assign(state, { request, answer: null, tokens: [], off: new Set(), pinned: { ...NOTHING_PINNED } });
  history.replaceState(null, "", linked());
  for (const part of ["error", "evidence", "what-if", "to-copy", "compare-part", "equation-part"]) at(part).hidden = true;
  at("answer").replaceChildren();
}

function retrieved({ sources }) {
  at("result").hidden = false;
  passages.begin(sources);
  heatMap.begin(sources);
  say("Writing …");
}

function decided(token) {
  const i = state.tokens.length;
  const shown = el("span", { class: "token" }, visible(token.text));
  shown.addEventListener("click", () => pinToken(i)); // the table's buttons do it for the keyboard
  state.tokens.push({ ...token, shown });
  at("answer").append(shown);
  heatMap.add([token]);
}

function finished(answer) {
  state.answer = answer;
  if (answer.answer === "") at("answer").append(el("span", { class: "quiet" }, "(the empty answer)"));
  at("sure").textContent = answer.confidence === undefined ? "" : `It is right with a probability of ${percent(answer.confidence)}.`;
  const bound = answer.decoding === "fast" ? "at least " : "";
  at("probability").textContent = `Probability ${bound}${probability(answer.log_prob)}: log p(y|x) = ${nats(answer.log_prob)} nats.`;
  at("facts").textContent = `${VARIANTS[answer.variant]}, ${answer.decoding} decoding, memory version ${answer.memory_version}.${byHeart(answer)}`;
  const all = answer.sources.map((_, z) => z);
  const ifGone = all.length < 2 ? null : all.map((gone) => logLikelihood(answer, all.filter((z) => z !== gone)));
  passages.finish(answer, ifGone);
  heatMap.finish(answer);
  at("closed-book").replaceChildren(...closedBook(answer));
  at("derivation").replaceChildren(...derivation(answer));
  for (const part of ["evidence", "compare-part", "equation-part"]) at(part).hidden = false;
  if (!state.request.as_of && memory.memory && answer.memory_version !== memory.memory.version) loadMemory();
  comparison.update(answer);
  difference.update();
  feedback.begin(state.keepsFeedback);
  restoreView();
}

/** How much of the answer the generator knew without a passage, where that is a source. */
function byHeart({ no_passage: share }) {
  return share === undefined ? "" : ` No passage: prior ${percent(share.prior)}, posterior ${percent(share.posterior)}.`;
}

/** What a link says of the answer, once it is here, to the same request. */
function restoreView() {
  const { answer, link } = state;
  const view = link !== null && link.request === JSON.stringify(state.request) ? link.view : null;
  state.link = null;
  if (view?.token < state.tokens.length) state.pinned.token = view.token;
  if (view?.passage < answer.sources.length) state.pinned.passage = view.passage;
  answer.sources.forEach(({ id }, z) => view?.without.includes(id) && answer.sources.length > 1 && state.off.add(z));
  whatIf();
}

/** An answer that is here already becomes the current one. */
function show(options, answer) {
  const request = { ...state.request, ...options };
  if (answer.memory_version !== state.answer.memory_version) comparison.clear();
  begin(request);
  setOptions(request);
  retrieved(answer);
  answer.tokens.forEach(decided);
  finished(answer);
  say("Shown.");
  at("answer-title").focus();
}

function ended() {
  state.running = null;
  at("answer").removeAttribute("aria-busy");
  at("cancel").hidden = true;
}

const say = (text) => at("status").replaceChildren(text);

function fail(error) {
  say("");
  if (!(error instanceof Failure)) throw error;
  if (error.status === 401) {
    at("key-field").hidden = false;
    at("key").focus();
  }
  at("error").textContent = visible(error.message);
  at("error").hidden = false;
}

// Pinning

function pinToken(i) {
  state.pinned.token = state.pinned.token === i ? null : i;
  update();
}

function pinPassage(z) {
  state.pinned.passage = state.pinned.passage === z ? null : z;
  update();
}

function update() {
  const { token, passage } = state.pinned;
  state.tokens.forEach(({ shown, posterior }, i) => {
    shown.classList.toggle("pinned", token === i);
    shown.classList.toggle("heat", passage !== null);
    shown.style.setProperty("--share", passage === null ? 0 : posterior[passage]);
  });
  const pinnedToken = token === null ? null : state.tokens[token];
  const ofToken = pinnedToken && { name: tokenName(pinnedToken.text), posterior: pinnedToken.posterior };
  passages.update({ pinned: passage, off: state.off, token: ofToken });
  heatMap.update({ pinned: passage, pinnedToken: token, off: state.off });
  if (state.answer !== null) history.replaceState(null, "", linked());
}

// Leaving passages out

function leaveOut(z) {
  if (!state.off.delete(z)) state.off.add(z);
  whatIf();
}

function whatIf() {
  const { answer, off } = state;
  update();
  state.again?.abort();
  at("what-if").hidden = off.size === 0;
  at("again").replaceChildren();
  if (off.size === 0) return;
  const kept = answer.sources.map((_, z) => z).filter((z) => !off.has(z));
  if (kept.length === 0) {
    at("change").textContent = "All passages are left out; what remains is the closed book, below.";
    return;
  }
  const logProb = logLikelihood(answer, kept);
  const change = logProb - answer.log_prob;
  const gone = [...off].sort((a, b) => a - b).map((z) => `[${z + 1}]`).join(", ");
  at("change").textContent =
    `Without ${gone} log p(y|x) of this answer is ${nats(logProb)} instead of ${nats(answer.log_prob)} ` +
    `(${signed(change)} nats): ${times(change)}.`;
  decodeAgain();
}

async function decodeAgain() {
  const again = new AbortController();
  state.again = again;
  at("again").textContent = "Decoding again …";
  const { answer } = state;
  // The same version of the memory, which may have been exchanged since.
  const body = { ...state.request, sentences: false, as_of: answer.memory_version, without: [...state.off].map((z) => answer.sources[z].id) };
  try {
    const found = await ask("v1/answer", { body, signal: again.signal });
    const isSame = found.answer === answer.answer;
    const text = el("strong", { dir: "auto" }, isolated(found.answer || "(the empty answer)"));
    const bound = answer.decoding === "fast" ? "at least " : "";
    const said = `: ${bound}${probability(found.log_prob)}, log p(y|x) = ${nats(found.log_prob)}.`;
    at("again").replaceChildren(isSame ? "The best answer stays " : "The best answer would be ", text, said);
  } catch (error) {
    if (state.again !== again || error.name === "AbortError") return;
    at("again").replaceChildren();
    fail(error);
  }
}

// Links

/** The address of this question with its options, and of what is pinned and left out. */
function linked(request = state.request) {
  const without = [...state.off].map((z) => state.answer.sources[z].id);
  return location.pathname + written(request, { ...state.pinned, without });
}

/** An address that leads to the same numbers when other versions of the memory are served. */
const lasting = () => new URL(linked({ ...state.request, as_of: state.answer.memory_version }), location.href).href;

/** Fills the form in and asks nothing: a page elsewhere could otherwise make the model work. */
function follow() {
  const link = read(location.hash);
  if (link === null) return;
  at("question").value = link.question;
  setOptions(link.options);
  const { k, as_of, variant, decoding, sentences, where } = link.options;
  at("options").open = [k, as_of, variant, sentences, where].some((each) => each !== "") || decoding !== "exact";
  state.link = { request: JSON.stringify(requested()), view: link.view };
  say("From a link: press Ask.");
}

function setOptions({ k = "", as_of = "", variant = "", decoding, sentences = "", where = "" }) {
  at("where").value = where;
  form.elements.sentences.checked = String(sentences) === "true";
  at("k").value = k;
  memory.choose(String(as_of));
  check("variant", variant);
  check("decoding", decoding);
}

function check(name, value) {
  for (const radio of form.elements[name]) radio.checked = radio.value === value;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    at("copied").value = text;
    at("to-copy").hidden = false;
    at("copied").select();
  }
}

// The memory

async function loadMemory() {
  try {
    const [model] = await Promise.all([ask("v1/model"), memory.load()]);
    at("model").textContent = visible(model.name);
    state.keepsFeedback = model.feedback;
  } catch (error) {
    fail(error);
  }
}

async function useMemory() {
  try {
    say(`Version ${await memory.use()} is served now.`);
  } catch (error) {
    fail(error);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  answerQuestion();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
at("cancel").addEventListener("click", () => state.running?.abort());
at("restore").addEventListener("click", () => {
  state.off.clear();
  whatIf();
});
at("copy-json").addEventListener("click", () => copy(JSON.stringify(state.answer, null, 2)));
at("copy-link").addEventListener("click", () => copy(lasting()));
at("use").addEventListener("click", useMemory);
at("key").addEventListener("change", () => {
  keepKey(at("key").value);
  at("error").hidden = true;
  loadMemory();
});
window.addEventListener("hashchange", follow);

follow();
loadMemory();
