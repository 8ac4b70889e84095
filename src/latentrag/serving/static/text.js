// Text from passages and models is untrusted: it becomes text nodes and nothing else.

/** An element with attributes; children are elements, or strings that become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A text that may run in either direction, without effect on what stands around it. */
export const isolated = (text) => el("bdi", {}, visible(text));

// Control characters but tab and newline; marks and overrides of direction; what has no width, but for the joiners
// that Persian and emoji need; tags, which hide a text in a text.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/** The text with a symbol for each character that would act instead of being seen. */
export function visible(text) {
  return text.replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "␡";
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

const WORD = /[\p{L}\p{M}\p{N}]+/gu;
const COMMON = new Set("the of and in is was are were to by on at for from with that this his her its as an a".split(" "));

const INITIAL = /^\p{Script=Latin}{1,2}$/u;

/** The words of an answer that are worth finding in a passage, in lower case; "I" and "IV" only where there are no others. */
export function wordsOf(text) {
  const found = (text.match(WORD) ?? []).map((word) => word.toLowerCase()).filter((word) => !COMMON.has(word));
  const long = found.filter((word) => !INITIAL.test(word));
  return new Set(long.length === 0 ? found : long);
}

/** The text as nodes, with the words in <mark>. */
export function marked(text, words) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    if (!words.has(found[0].toLowerCase())) continue;
    nodes.push(visible(text.slice(end, found.index)), el("mark", {}, visible(found[0])));
    end = found.index + found[0].length;
  }
  nodes.push(visible(text.slice(end)));
  return nodes;
}

/**
 * The text as nodes, with the words in <mark> and a line under sentences: the more log p would fall, the thicker.
 * sentences: start and end in characters (code points), change in nats, and the change as it is said.
 */
export function underlined(text, sentences, words) {
  const characters = [...text]; // offsets of the server do not count UTF-16 units
  const part = (start, end) => marked(characters.slice(start, end).join(""), words);
  const most = Math.max(0, ...sentences.map(({ change }) => -change).filter(Number.isFinite));
  const nodes = [];
  let done = 0;
  for (const { start, end, change, said } of sentences) {
    const sentence = el("span", { class: "sentence" }, ...part(start, end));
    sentence.style.setProperty("--share", change < 0 ? Math.min(1, -change / (most || 1)) : 0);
    nodes.push(...part(done, start), sentence, el("small", { class: "change", dir: "ltr" }, ` ${said}`));
    done = end;
  }
  return [...nodes, ...part(done, characters.length)];
}

/** A token as a name: white space alone, or nothing, could not be seen. */
export const tokenName = (text) => (text === "" ? "∅" : text.trim() === "" ? "␣" : text.trim());

/** A bar of a share beside its number, which says the same. */
export function bar(kind, share) {
  const filled = el("span", { class: `filled ${kind}` });
  filled.style.setProperty("inline-size", `${100 * Math.max(0, Math.min(1, share))}%`);
  return el("span", { class: "bar", "aria-hidden": "true" }, filled);
}
