// Where a passage comes from, opened at its place: between its neighbours, or at the page or the words of its address.

import { Failure, ask } from "./api.js";
import { el, isolated, marked, visible } from "./text.js";

/** The address of a source that a browser can open at the passage; null for others. Passages are untrusted. */
export function addressOf({ source, page, text }) {
  let url;
  try {
    url = new URL(source);
  } catch {
    return null;
  }
  if (!["http:", "https:"].includes(url.protocol)) return null;
  if (page !== null) url.hash = `page=${page}`;
  else url.hash = `:~:text=${fragment(text)}`;
  return url.href;
}

/** The first and the last words of a text, as text fragments have them. */
function fragment(text) {
  const words = text.trim().split(/\s+/u);
  const quoted = (part) => encodeURIComponent(part.join(" ").toWellFormed()).replaceAll("-", "%2D");
  return words.length <= 12 ? quoted(words) : `${quoted(words.slice(0, 5))},${quoted(words.slice(-5))}`;
}

/** What a source is called, as a link where it can be opened. */
export function placeOf(source) {
  const name = source.source || source.id;
  const said = source.page === null ? [isolated(name)] : [isolated(name), `, page ${source.page}`];
  const href = addressOf(source);
  return href === null ? el("span", {}, ...said) : el("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...said);
}

/** The passage in its document. words: to mark. */
export class Neighbourhood {
  constructor(source, version, words) {
    Object.assign(this, { source, version, words });
    this.root = el("div", { class: "neighbours", hidden: true });
    this.isLoaded = false;
  }

  async toggle() {
    this.root.hidden = !this.root.hidden;
    if (this.root.hidden || this.isLoaded) return;
    this.root.replaceChildren(el("p", { class: "quiet" }, "Looking …"));
    try {
      const found = await ask(`api/passage?${new URLSearchParams({ id: this.source.id, as_of: this.version })}`);
      this.isLoaded = true;
      this.show(found);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.root.replaceChildren(el("p", { class: "bad" }, visible(error.message)));
    }
  }

  show({ document, before, passage, after }) {
    const around = (each) => el("p", { class: "text quiet", dir: "auto" }, visible(each.text));
    const own = el("p", { class: "text own", dir: "auto" }, ...marked(passage.text, this.words));
    const isAlone = before.length + after.length === 0;
    const said = isAlone ? "This passage is the whole of " : "In its place in ";
    this.root.replaceChildren(
      el("p", { class: "quiet" }, said, isolated(document), ":"),
      ...before.map(around),
      own,
      ...after.map(around),
    );
  }
}
