// The page: a question, its answer as it comes, and what the answer would be otherwise.

import { Failure, ask, keepKey, stream } from "./api.js";
import { copy } from "./copy.js";
import { closedBook, derivation } from "./derivation.js";
import { Difference } from "./difference.js";
import { Documents } from "./documents.js";
import { Evidence } from "./evidence.js";
import { hideExamples, offerExamples } from "./examples.js";
import { Feedback } from "./feedback.js";
import { HeatMap } from "./heatmap.js";
import { read, written } from "./link.js";
import { MemoryChooser } from "./memory.js";
import { inWords } from "./numbers.js";
import { Passages } from "./passages.js";
import { el, isolated, tokenName, visible } from "./text.js";
import { Thread, questionOf, readAs, turnsBefore } from "./thread.js";
import { Trail } from "./trail.js";
import { Comparison } from "./ways.js";
import { VARIANTS, sayWhatItIsWorth, saidWithout } from "./worth.js";

const at = (id) => document.getElementById(id);
const form = at("ask");
const NOTHING_PINNED = { token: null, passage: null };
const MOST_TOKENS = 512;
const SHORT_ANSWER = 120; // characters that have room in large letters, and beside others

// What is shown: the request, the answer once it is whole, passages that are left out, the last of them last; what is
// seen instead while some are; what is pinned; what a link holds.
const state = { request: null, answer: null, tokens: [], off: new Set(), seen: null, pinned: { ...NOTHING_PINNED }, link: null, running: null, keepsFeedback: false };

const current = () => state;
const difference = new Difference(at("difference"), { current, show });
const memory = new MemoryChooser(at("as_of"), at("use"), at("memory"), (served, chosen) => difference.choose(served, chosen));
const comparing = { list: at("ways"), status: at("compare-status"), stop: at("stop-comparing"), again: at("compare-again") };
const comparison = new Comparison(at("comparison"), comparing, { current, show });
const passages = new Passages(at("passages"), { pin: pinPassage, leaveOut });
const feedback = new Feedback({ current: () => state.answer, fail });
const thread = new Thread(at("thread-part"), at("thread"));
const heatMap = new HeatMap(at("heat-map"), at("heat-caption"), { pinToken, pinPassage });
const evidence = new Evidence({ current, place: (z) => passages.effectAt(z), shown: seeInstead, fail });
const documents = new Documents({ changed: loadMemory });
const trail = new Trail({ show: showAgain, follow });

// Asking

function requested() {
  const fields = new FormData(form);
  const body = { ...thread.asking(fields.get("q")), decoding: fields.get("decoding") };
  if (fields.get("variant")) body.variant = fields.get("variant");
  if (fields.get("sentences")) body.sentences = true;
  if (fields.get("where").trim()) body.where = fields.get("where").trim();
  for (const name of ["k", "max_tokens"]) if (fields.get(name)) body[name] = Number(fields.get(name));
  if (fields.get("as_of")) body.as_of = /^\d+$/.test(fields.get("as_of")) ? Number(fields.get("as_of")) : fields.get("as_of");
  return body;
}

async function answerQuestion() {
  begin(requested());
  trail.begin(state.request, linked());
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
    if (state.answer === null) clear();
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

/** The same question with room for twice as many tokens. */
function goOn() {
  at("max_tokens").value = Math.min(MOST_TOKENS, Math.max(32, 2 * state.answer.log_p_theta[0].length));
  backTo(state.request);
  answerQuestion();
}

// Showing

function begin(request) {
  state.running?.abort();
  evidence.stop();
  Object.assign(state, { request, answer: null, tokens: [], off: new Set(), seen: null, pinned: { ...NOTHING_PINNED } });
  for (const part of ["error", "evidence", "next-part", "to-copy", "more-part", "cut", "restore", "instead"]) at(part).hidden = true;
  at("copy-status").textContent = "";
  at("answer").replaceChildren();
  at("answer").classList.remove("replaced");
  hideExamples();
  noteEditing();
}

/** Half an answer is none. */
function clear() {
  at("result").hidden = true;
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
  at("answer-part").classList.toggle("long", answer.answer.length > SHORT_ANSWER);
  sayWhatItIsWorth(answer);
  at("cut").hidden = answer.hypotheses[0].finished || answer.log_p_theta[0].length >= MOST_TOKENS;
  const all = answer.sources.map((_, z) => z);
  passages.finish(answer, all.map((gone) => saidWithout(answer, all.filter((z) => z !== gone))));
  heatMap.finish(answer);
  at("read-as").replaceChildren(...readAs(answer.conversation, state.request));
  at("closed-book").replaceChildren(...closedBook(answer));
  at("derivation").replaceChildren(...derivation(answer));
  for (const part of ["evidence", "next-part", "more-part"]) at(part).hidden = false;
  if (!state.request.as_of && memory.memory && answer.memory_version !== memory.memory.version) loadMemory();
  comparison.update(answer);
  difference.update();
  feedback.begin(state.keepsFeedback && answer.conversation === undefined); // what is kept is a question without turns
  trail.finish(answer);
  restoreView();
}

/** What a link says of the answer, once it is here, to the same request. */
function restoreView() {
  const { answer, link } = state;
  const view = link !== null && link.request === JSON.stringify(state.request) ? link.view : null;
  state.link = null;
  if (view?.token < state.tokens.length) state.pinned.token = view.token;
  if (view?.passage < answer.sources.length) state.pinned.passage = view.passage;
  for (const id of view?.without ?? []) {
    const z = answer.sources.findIndex((source) => source.id === id);
    if (z !== -1 && answer.sources.length > 1) state.off.add(z);
  }
  whatIf();
}

/** An answer that is here already becomes the current one. */
function show(options, answer) {
  const request = { ...state.request, ...options };
  if (answer.memory_version !== state.answer.memory_version) comparison.clear();
  present(request, answer, () => trail.begin(state.request, linked()));
  at("answer-title").focus();
}

/** The question of a request, in its conversation. */
function backTo(request) {
  thread.become(turnsBefore(request));
  at("question").value = questionOf(request);
}

/** One that was shown before, by Back or Forward. */
function showAgain(request, answer) {
  comparison.clear();
  difference.forget();
  backTo(request);
  state.link = { request: JSON.stringify(request), view: read(location.hash).view };
  present(request, answer, () => {
    trail.entry = { request, answer };
  });
}

function present(request, answer, begun) {
  begin(request);
  begun();
  setOptions(request);
  retrieved(answer);
  answer.tokens.forEach(decided);
  finished(answer);
  ended();
  say("Shown.");
}

function ended() {
  state.running = null;
  at("answer").removeAttribute("aria-busy");
  at("cancel").hidden = true;
}

/** While another question is being written, the answer is not to it. */
function noteEditing() {
  const isStale = state.answer !== null && at("question").value !== questionOf(state.request);
  at("result").classList.toggle("stale", isStale);
  at("stale").hidden = !isStale;
  if (isStale) at("stale-question").textContent = visible(questionOf(state.request));
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
  at("error").scrollIntoView({ block: "nearest" }); // it may be far from what was pressed
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
  const tokens = state.seen?.tokens ?? state.tokens;
  const pinnedToken = token === null ? null : (tokens[token] ?? null);
  const ofToken = pinnedToken && { name: tokenName(pinnedToken.text), posterior: pinnedToken.posterior };
  const posteriors = state.answer === null ? null : (state.seen?.posteriors ?? state.answer.sources.map((source) => source.posterior));
  passages.update({ pinned: passage, off: state.off, token: ofToken, posteriors });
  heatMap.update({ pinned: passage, pinnedToken: token, off: state.off });
  if (state.answer !== null) trail.note(linked());
}

// Leaving passages out

function leaveOut(z) {
  if (!state.off.delete(z)) state.off.add(z);
  whatIf();
}

function whatIf() {
  at("restore").hidden = state.off.size === 0;
  evidence.update();
}

/** What the heat map and the shares show: of the answer, or of what it would be; null: the answer's own. */
function seeInstead(seen) {
  const { answer } = state;
  if (seen !== null || state.seen !== null) {
    const own = { tokens: state.tokens, posteriors: answer.sources.map((source) => source.posterior), log_prob: answer.log_prob };
    heatMap.show(seen ?? own);
    passages.mark((seen ?? { text: answer.answer }).text);
  }
  state.seen = seen;
  sayInstead();
  update();
}

/** Beside the answer, too, which may be far from the passage. While it is asked for, what it will be is not known. */
function sayInstead() {
  const { seen, off, answer } = state;
  const isKnown = seen !== null && seen.isFound && off.size < answer.sources.length;
  const isOther = isKnown && seen.text !== answer.answer;
  at("answer").classList.toggle("replaced", isOther);
  at("instead").hidden = !isKnown;
  if (!isKnown) return;
  const gone = [...off].sort((a, b) => a - b).map((z) => `[${z + 1}]`).join(", ");
  at("instead").replaceChildren(
    el("span", { class: "quiet" }, `Without ${gone}: `),
    isOther ? el("strong", { dir: "auto" }, isolated(seen.text || "(the empty answer)")) : "the same answer",
    el("span", { class: "quiet" }, ` probability ${seen.bound}${inWords(seen.log_prob)}`),
  );
}

// Links

/** The address of this question with its options, and of what is pinned and left out. */
function linked(request = state.request) {
  const without = [...state.off].map((z) => state.answer.sources[z].id);
  return location.pathname + written(request, { ...state.pinned, without });
}

const sayCopied = (text) => at("copy-status").replaceChildren(text);

/** An address that leads to the same numbers when other versions of the memory are served. */
const lasting = () => new URL(linked({ ...state.request, as_of: state.answer.memory_version }), location.href).href;

/** Fills the form in and asks nothing: a page elsewhere could otherwise make the model work. */
function follow() {
  const link = read(location.hash);
  if (link === null) {
    firstVisit();
    return;
  }
  thread.become(link.turns);
  at("question").value = link.question;
  setOptions(link.options);
  const { k, as_of, variant, decoding, sentences, where, max_tokens } = link.options;
  at("options").open = [k, as_of, variant, sentences, where, max_tokens].some((each) => each !== "") || decoding !== "exact";
  state.link = { request: JSON.stringify(requested()), view: link.view };
  noteEditing();
  say("From a link: press Ask.");
}

/** Back at the beginning, too. */
function firstVisit() {
  at("steps").hidden = false;
  if (state.answer !== null) {
    at("question").value = "";
    state.running?.abort();
    evidence.stop();
    state.answer = null;
    clear();
    say("");
  }
  offerExamples((question) => {
    at("question").value = question;
    form.requestSubmit();
  });
}

function setOptions({ k = "", as_of = "", variant = "", decoding, sentences = "", where = "", max_tokens = "" }) {
  at("where").value = where;
  form.elements.sentences.checked = String(sentences) === "true";
  at("k").value = k;
  at("max_tokens").value = max_tokens;
  memory.choose(String(as_of));
  check("variant", variant);
  check("decoding", decoding);
}

function check(name, value) {
  for (const radio of form.elements[name]) radio.checked = radio.value === value;
}

// The memory

async function loadMemory() {
  try {
    const [model] = await Promise.all([ask("v1/model"), memory.load()]);
    at("model").textContent = visible(model.name);
    at("k").placeholder = `${model.k}, as saved`;
    at("saved-variant").textContent = ` (${VARIANTS[model.variant]})`;
    state.keepsFeedback = model.feedback;
    documents.allow(model.writes);
    at("use").hidden = !model.exchanges;
  } catch (error) {
    fail(error);
  }
}

async function useMemory() {
  try {
    const version = await memory.use();
    if (version !== null) say(`Version ${version} is served now.`);
  } catch (error) {
    fail(error);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  answerQuestion();
});
// A field that is wrong and hidden could not be seen, nor get the focus.
form.addEventListener("invalid", ({ target }) => {
  say("");
  target.closest("details")?.setAttribute("open", "");
}, true);
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
at("question").addEventListener("input", noteEditing);
at("back-to-it").addEventListener("click", () => {
  backTo(state.request);
  noteEditing();
  at("answer-title").focus();
});
at("follow-up-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.answer === null) return;
  thread.become(turnsBefore(state.request));
  thread.add(questionOf(state.request), state.answer.answer);
  at("question").value = at("follow-up").value;
  at("follow-up").value = "";
  answerQuestion();
  at("thread-title").focus(); // the answer will be above what was pressed
});
at("begin-anew").addEventListener("click", () => {
  thread.become([]);
  at("question").value = "";
  say("");
  noteEditing();
  at("question").focus();
});
at("cancel").addEventListener("click", () => state.running?.abort());
at("longer").addEventListener("click", goOn);
at("restore").addEventListener("click", () => {
  state.off.clear();
  whatIf();
});
at("copy-json").addEventListener("click", () => copy(JSON.stringify(state.answer, null, 2), sayCopied));
at("copy-link").addEventListener("click", () => copy(lasting(), sayCopied));
at("use").addEventListener("click", useMemory);
at("key").addEventListener("change", () => {
  keepKey(at("key").value);
  at("error").hidden = true;
  loadMemory();
  if (state.request === null) follow();
});

follow();
loadMemory();
