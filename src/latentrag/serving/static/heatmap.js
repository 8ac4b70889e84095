// The table of tokens × passages: a number in every cell, and a colour that says the same.

import { percent } from "./numbers.js";
import { el, isolated, tokenName } from "./text.js";

const CAPTIONS = {
  undefined: "Which passage is behind it, word by word, as the answer is written.",
  sequence: "How much of the answer is due to each passage: before it, up to each word, and as a whole.",
  token: "Which passage each word is due to. The first row is before the answer, the last the mean of all words.",
};

export class HeatMap {
  /** on: pinToken(i) and pinPassage(z) are called with indexes. */
  constructor(table, caption, on) {
    this.table = table;
    this.caption = caption;
    this.on = on;
    this.rows = [];
    this.columns = [];
    table.addEventListener("keydown", (event) => this.move(event));
    table.addEventListener("focusin", (event) => this.stopAt(event.target));
  }

  /** Tokens one below the other, passages side by side; of each the Tab key stops at one. */
  groups() {
    return [
      { pins: this.rows.map((each) => each.pin), back: "ArrowUp", on: "ArrowDown" },
      { pins: this.columns.map((each) => each.pin), back: "ArrowLeft", on: "ArrowRight" },
    ];
  }

  move(event) {
    for (const { pins, back, on } of this.groups()) {
      const i = pins.indexOf(event.target);
      const goal = { [back]: i - 1, [on]: i + 1, Home: 0, End: pins.length - 1 }[event.key];
      if (i === -1 || goal === undefined || pins[goal] === undefined) continue;
      event.preventDefault();
      pins[goal].focus();
    }
  }

  stopAt(pin) {
    for (const { pins } of this.groups()) {
      if (pins.includes(pin)) for (const each of pins) each.tabIndex = each === pin ? 0 : -1;
    }
  }

  begin(sources) {
    this.rows = [];
    this.caption.textContent = CAPTIONS.undefined;
    this.columns = sources.map((source, z) => {
      const pin = el("button", { type: "button", "aria-pressed": "false" }, `[${z + 1}] `, isolated(source.title || source.id));
      pin.addEventListener("click", () => this.on.pinPassage(z));
      pin.tabIndex = z === 0 ? 0 : -1;
      return { pin, head: el("th", { scope: "col" }, pin) };
    });
    this.body = el("tbody");
    const head = el("tr", {}, el("th", { scope: "col" }, "Word"), ...this.columns.map((each) => each.head));
    head.append(el("th", { scope: "col" }, "Probability"));
    this.body.append(row("before", sources.map((source) => source.prior), ""));
    this.foot = el("tfoot");
    this.table.replaceChildren(el("thead", {}, head), this.body, this.foot);
  }

  add(tokens) {
    for (const token of tokens) {
      const i = this.rows.length;
      const pin = el("button", { type: "button", "aria-pressed": "false" }, isolated(tokenName(token.text)));
      pin.addEventListener("click", () => this.on.pinToken(i));
      pin.tabIndex = i === 0 ? 0 : -1;
      const made = row(pin, token.posterior, percent(token.log_prob === null ? 0 : Math.exp(token.log_prob)));
      this.rows.push({ pin, root: made });
      this.body.append(made);
    }
  }

  finish(answer) {
    this.caption.textContent = CAPTIONS[answer.variant];
    this.end(answer.sources.map((source) => source.posterior), answer.log_prob);
  }

  end(posteriors, logProb) {
    this.foot.replaceChildren(row("answer", posteriors, logProb === undefined ? "" : percent(Math.exp(logProb))));
  }

  /** Another answer's tokens in place of those that are shown, over the same passages. */
  show({ tokens, posteriors, log_prob: logProb }) {
    this.rows.forEach(({ root }) => root.remove());
    this.rows = [];
    this.add(tokens ?? []);
    this.end(posteriors, logProb);
  }

  update({ pinnedToken, pinned, off }) {
    this.rows.forEach(({ pin, root }, i) => {
      pin.setAttribute("aria-pressed", pinnedToken === i);
      root.classList.toggle("pinned", pinnedToken === i);
    });
    this.columns.forEach(({ pin }, z) => pin.setAttribute("aria-pressed", pinned === z));
    for (const each of this.table.querySelectorAll("tr")) {
      [...each.cells].slice(1, -1).forEach((cell, z) => {
        cell.classList.toggle("pinned", pinned === z);
        cell.classList.toggle("off", off.has(z));
      });
    }
  }
}

function row(name, shares, logP) {
  const cells = shares.map((share) => {
    const cell = el("td", { class: "heat" }, percent(share));
    cell.style.setProperty("--share", share);
    return cell;
  });
  return el("tr", {}, el("th", { scope: "row" }, name), ...cells, el("td", {}, logP));
}
