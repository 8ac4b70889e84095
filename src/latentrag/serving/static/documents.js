// The memory's documents: listed, added, deleted; for those who may.

import { Failure, ask, upload } from "./api.js";
import { confirmed } from "./confirm.js";
import { el, isolated, visible } from "./text.js";

const at = (id) => document.getElementById(id);
const PATH = "api/documents";
const POLL_MS = 700;
const TYPING_MS = 200;
const counted = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;

export class Documents {
  /** changed: called when the memory has another version. */
  constructor({ changed }) {
    Object.assign(this, { changed, shown: [], most: Infinity, running: null, listing: 0, typing: 0 });
    at("show-documents").addEventListener("click", () => this.toggle());
    at("files").addEventListener("change", () => this.add([...at("files").files]));
    at("upload").addEventListener("submit", (event) => event.preventDefault());
    at("stop-upload").addEventListener("click", () => this.running?.abort());
    at("more-documents").addEventListener("click", () => this.list(this.shown.at(-1).id));
    at("find-document").addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.list(), TYPING_MS);
    });
    const zone = at("documents");
    zone.addEventListener("dragover", (event) => event.preventDefault());
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }

  /** Whether the client may change documents. */
  allow(may) {
    at("show-documents").hidden = !may;
    if (!may) at("documents").hidden = true;
  }

  toggle() {
    const isOpen = at("documents").hidden;
    at("documents").hidden = !isOpen;
    at("show-documents").setAttribute("aria-expanded", isOpen);
    if (!isOpen) return;
    at("documents-title").focus();
    this.list();
  }

  /** Lists from the beginning, or what comes after an id. */
  async list(after = "") {
    const mine = (this.listing += 1);
    try {
      const query = new URLSearchParams({ after, containing: at("find-document").value });
      const found = await ask(`${PATH}?${query}`);
      if (mine !== this.listing) return; // another was asked for meanwhile
      this.most = found.max_upload_bytes;
      this.shown = after ? [...this.shown, ...found.documents] : found.documents;
      at("document-list").replaceChildren(...this.shown.map((each) => this.item(each)));
      at("documents-count").textContent = `${counted(found.count, "document")} in version ${found.memory_version}`;
      at("more-documents").hidden = this.shown.length >= found.count;
    } catch (error) {
      this.fail(error);
    }
  }

  item({ id, title, passages, synced }) {
    const name = title && title !== id ? [isolated(title), " ", el("span", { class: "quiet" }, isolated(id))] : [isolated(id)];
    const size = el("span", { class: "quiet size" }, counted(passages, "passage"));
    if (synced) return el("li", {}, el("span", {}, ...name), size, el("span", { class: "quiet" }, "kept by a sync"));
    const button = el("button", { type: "button" }, "Delete ", el("span", { class: "unseen" }, isolated(id)));
    button.addEventListener("click", () => this.remove(id, passages));
    return el("li", {}, el("span", {}, ...name), size, button);
  }

  async remove(id, passages) {
    const text = `Delete “${visible(id)}” (${counted(passages, "passage")}) from the memory? Earlier versions keep it.`;
    if (!(await confirmed(text, "Delete it"))) return;
    try {
      const done = await ask(`${PATH}?${new URLSearchParams({ id })}`, { method: "DELETE" });
      this.say(`${visible(id)} is deleted. ${served(done)}`);
      this.changed();
      this.list();
    } catch (error) {
      this.fail(error);
    }
  }

  async add(files) {
    if (files.length === 0 || this.running !== null) return;
    const size = files.reduce((total, file) => total + file.size, 0);
    if (size > this.most) {
      this.say(`These files have ${(size / 1e6).toFixed(0)} MB; at most ${(this.most / 1e6).toFixed(0)} MB can be added at once.`, true);
      return;
    }
    const running = new AbortController();
    this.running = running;
    this.busy(true);
    this.say(`Sending ${counted(files.length, "file")} …`);
    const bar = at("upload-progress");
    const watching = setInterval(() => this.watch(), POLL_MS);
    try {
      const onSent = (share) => (bar.value = share);
      const done = await upload(PATH, files, { signal: running.signal, onSent });
      this.say(summary(done));
      this.changed();
      this.list();
    } catch (error) {
      if (error.name === "AbortError") this.say("Cancelled; nothing was added.");
      else this.fail(error);
    } finally {
      clearInterval(watching);
      this.running = null;
      this.busy(false);
    }
  }

  async watch() {
    try {
      const { stage, read, encoded } = await ask(`${PATH}/progress`);
      if (this.running === null || stage !== "reading") return;
      at("upload-progress").removeAttribute("value");
      this.say(`Reading: ${counted(read, "passage")} read, ${encoded.toLocaleString("en")} made searchable …`);
    } catch (error) {
      if (!(error instanceof Failure)) throw error; // the request itself will tell
    }
  }

  busy(isBusy) {
    at("upload-progress").hidden = !isBusy;
    at("upload-progress").value = 0;
    at("stop-upload").hidden = !isBusy;
    at("files").disabled = isBusy;
    if (!isBusy) at("files").value = "";
  }

  say(text, isBad = false) {
    at("upload-status").textContent = text;
    at("upload-status").classList.toggle("bad", isBad);
  }

  fail(error) {
    if (!(error instanceof Failure)) throw error;
    this.say(visible(error.message), true);
  }
}

const served = ({ memory_version: made, served_version: now }) =>
  made === now ? `Version ${now} answers now.` : `That is version ${made}; version ${now} was chosen and goes on answering.`;

function summary(done) {
  const counts = ["added", "replaced", "removed", "unchanged"].filter((name) => done[name] > 0).map((name) => `${counted(done[name], "passage")} ${name}`);
  const left = done.files.flatMap(({ file, left_out: out }) =>
    Object.entries(out).filter(([why]) => !why.startsWith("character")).map(([why, number]) => `${visible(file)}: ${number} × ${visible(why)}`));
  const said = left.length ? ` Left out: ${left.join("; ")}.` : "";
  return `${counts.join(", ") || "Nothing new"}. ${served(done)}${said}`;
}
