// The page: a question, its answer as it comes, and what the answer would be otherwise.

import { Failure, ask, keepKey, stream } from "./api.js";
import { closedBook, derivation } from "./derivation.js";
import { HeatMap } from "./heatmap.js";
import { MemoryChooser } from "./memory.js";
import { fromLog, logLikelihood, nats, percent, signed, times } from "./numbers.js";
import { Passages } from "./passages.js";
import { el, isolated, tokenName, visible } from "./text.js";

const at = (id) => document.getElementById(id);
const form = at("ask");
const VARIANTS = { sequence: "RAG-Sequence", token: "RAG-Token" };
const NOTHING_PINNED = { token: null, passage: null };

// What is shown: the request, the answer once it is whole, passages that are left out, what is pinned.
const state = { request: null, answer: null, tokens: [], off: new Set(), pinned: { ...NOTHING_PINNED }, running: null, again: null };

const memory = new MemoryChooser(at("as_of"), at("use"), at("memory"));
const passages = new Passages(at("passages"), { pin: pinPassage, leaveOut });
const heatMap = new HeatMap(at("heat-map"), { pinToken, pinPassage });

// Asking

function requested() {
  const fields = new FormData(form);
  const body = { question: fields.get("q"), decoding: fields.get("decoding") };
  if (fields.get("variant")) body.variant = fields.get("variant");
  if (fields.get("k")) body.k = Number(fields.get("k"));
  if (fields.get("as_of")) body.as_of = /^\d+$/.test(fields.get("as_of")) ? Number(fields.get("as_of")) : fields.get("as_of");
  return body;
}

async function answerQuestion() {
  state.running?.abort();
  state.again?.abort();
  const running = new AbortController();
  Object.assign(state, { request: requested(), answer: null, tokens: [], off: new Set(), pinned: { ...NOTHING_PINNED }, running });
  history.replaceState(null, "", linked());
  begin();
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
  for await (const [name, data] of stream("/v1/answer/stream", { body: state.request, signal })) {
    if (name === "sources") retrieved(data);
    if (name === "token") decided(data);
    if (name === "answer") finished(data);
  }
  if (state.answer === null) throw new Failure("The connection ended before the answer did; ask again.");
}

/** Thorough and Fast Decoding choose when all is decoded: nothing can be shown before. */
async function whole(signal) {
  const answer = await ask("/v1/answer", { body: state.request, signal });
  retrieved(answer);
  answer.tokens.forEach(decided);
  finished(answer);
}

// Showing

function begin() {
  at("error").hidden = true;
  at("result").hidden = true;
  at("evidence").hidden = true;
  at("what-if").hidden = true;
  at("to-copy").hidden = true;
  at("equation-part").hidden = true;
  at("answer").replaceChildren();
  at("answer").setAttribute("aria-busy", "true");
  at("cancel").hidden = false;
  say("Retrieving passages …");
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
  const bound = answer.decoding === "fast" ? "at least " : "";
  at("probability").textContent = `Probability ${bound}${probability(answer.log_prob)}: log p(y|x) = ${nats(answer.log_prob)} nats.`;
  at("facts").textContent = `${VARIANTS[answer.variant]}, ${answer.decoding} decoding, memory version ${answer.memory_version}.`;
  const all = answer.sources.map((_, z) => z);
  const ifGone = all.length < 2 ? null : all.map((gone) => logLikelihood(answer, all.filter((z) => z !== gone)));
  passages.finish(answer, ifGone);
  heatMap.finish(answer);
  at("closed-book").replaceChildren(...closedBook(answer));
  at("derivation").replaceChildren(...derivation(answer));
  at("equation-part").hidden = false;
  at("evidence").hidden = false;
  if (!state.request.as_of && memory.memory && answer.memory_version !== memory.memory.version) loadMemory();
  update();
}

const probability = (logProb) => (logProb > Math.log(0.001) ? percent(Math.exp(logProb)) : fromLog(logProb));

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
  const body = { ...state.request, as_of: answer.memory_version, without: [...state.off].map((z) => answer.sources[z].id) };
  try {
    const found = await ask("/v1/answer", { body, signal: again.signal });
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

/** The address of this question with its options. */
function linked() {
  const { question, ...options } = state.request;
  const fields = new URLSearchParams({ q: question, ...options });
  return `${location.pathname}#${fields}`;
}

function follow() {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (!fields.has("q")) return;
  at("question").value = fields.get("q");
  at("k").value = fields.get("k") ?? "";
  memory.choose(fields.get("as_of") ?? "");
  check("variant", fields.get("variant") ?? "");
  check("decoding", fields.get("decoding") ?? "exact");
  at("options").open = [...fields.keys()].length > 2 || fields.get("decoding") === "fast" || fields.get("decoding") === "thorough";
  say("From a link: press Ask.");
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
    const [models] = await Promise.all([ask("/v1/models"), memory.load()]);
    at("model").textContent = visible(models.data[0].id);
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
at("copy-link").addEventListener("click", () => copy(new URL(linked(), location.href).href));
at("use").addEventListener("click", useMemory);
at("key").addEventListener("change", () => {
  keepKey(at("key").value);
  at("error").hidden = true;
  loadMemory();
});
window.addEventListener("hashchange", follow);

follow();
loadMemory();
