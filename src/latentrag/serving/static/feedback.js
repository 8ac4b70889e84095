// Right or wrong: two buttons below an answer, where the server keeps what is said.

import { ask } from "./api.js";

const at = (id) => document.getElementById(id);

export class Feedback {
  /** current: gives the answer that is shown, null while there is none; fail: shows what went wrong. */
  constructor({ current, fail }) {
    this.current = current;
    this.fail = fail;
    at("is-right").addEventListener("click", () => this.send({ is_right: true }));
    at("is-wrong").addEventListener("click", () => this.doubt());
    at("correction-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const correction = at("correction").value.trim();
      this.send(correction ? { is_right: false, correction } : { is_right: false });
    });
  }

  /** For an answer that has just come. isOn: whether the server keeps feedback. */
  begin(isOn) {
    at("feedback").hidden = !isOn;
    at("correction-form").hidden = true;
    at("correction").value = "";
    at("feedback-status").textContent = "";
    for (const button of ["is-right", "is-wrong"]) at(button).disabled = false;
    at("is-right").disabled = this.current()?.answer === "";
  }

  doubt() {
    at("correction-form").hidden = false;
    at("correction").focus();
  }

  async send(verdict) {
    const { question, answer, best_guess, memory_version, sources } = this.current();
    const body = { question, answer: best_guess ?? answer, memory_version, sources: sources.map(({ id }) => id), ...verdict };
    try {
      await ask("api/feedback", { body });
      at("feedback-status").textContent = "Thank you, that is kept.";
      at("correction-form").hidden = true;
      for (const button of ["is-right", "is-wrong"]) at(button).disabled = true;
    } catch (error) {
      this.fail(error);
    }
  }
}
