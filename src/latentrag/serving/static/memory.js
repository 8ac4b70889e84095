// Which version of the memory is served and asked.

import { ask } from "./api.js";
import { confirmed } from "./confirm.js";
import { el, visible } from "./text.js";

export class MemoryChooser {
  /** select: versions to ask; button: serves the chosen one; shown: says what is served; onChange(served, chosen). */
  constructor(select, button, shown, onChange) {
    Object.assign(this, { select, button, shown, onChange, memory: null });
    select.addEventListener("change", () => this.update());
  }

  /** Throws as the API does. */
  async load() {
    this.show(await ask("v1/memory"));
  }

  /** Serves the chosen version to everybody, if that is meant. Returns: its number, or null. Throws as the API does. */
  async use() {
    const version = Number(this.select.value);
    const question = `Everybody who uses this server will get answers from version ${version} instead of ${this.memory.version}.`;
    if (!(await confirmed(question, `Serve version ${version}`))) return null;
    this.show(await ask("v1/memory", { body: { action: "use", version } }));
    return this.memory.version;
  }

  /** Chooses a version to ask, also one that is not listed: a link may name any. */
  choose(version) {
    if (![...this.select.options].some((option) => option.value === version)) {
      this.select.append(el("option", { value: version }, `version ${visible(version)}`));
    }
    this.select.value = version;
    this.update();
  }

  show(memory) {
    this.memory = memory;
    const chosen = this.select.value;
    const served = el("option", { value: "" }, `the one that is served: ${memory.version}`);
    const versions = [...memory.versions].reverse().map((each) => {
      const names = each.tags.length ? `, ${each.tags.join(", ")}` : "";
      const name = `${each.version}: ${each.passages} passages, ${each.change}${names}`;
      return el("option", { value: each.version }, visible(name));
    });
    this.select.replaceChildren(served, ...versions);
    this.choose(chosen);
    this.shown.textContent = `over ${visible(memory.name)}, version ${memory.version}, ${memory.passages.toLocaleString("en")} passages`;
  }

  update() {
    const chosen = this.select.value;
    const isOther = chosen !== "" && this.memory !== null && chosen !== String(this.memory.version);
    this.onChange(isOther ? this.memory.version : null, isOther ? chosen : null);
    this.button.disabled = chosen === "" || !/^\d+$/.test(chosen) || Number(chosen) === this.memory?.version;
  }
}
