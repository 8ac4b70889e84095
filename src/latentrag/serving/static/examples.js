// Questions to begin with, made from the memory's own passages.

import { Failure, ask } from "./api.js";
import { el, isolated } from "./text.js";

const at = (id) => document.getElementById(id);

/** Shows them until something is asked. choose(question) is called with the one that is wanted. */
export async function offerExamples(choose) {
  let found;
  try {
    found = await ask("api/examples");
  } catch (error) {
    if (error instanceof Failure) return; // whatever is wrong, the page says so elsewhere
    throw error;
  }
  const items = found.questions.map((question) => {
    const button = el("button", { type: "button" }, isolated(question));
    button.addEventListener("click", () => choose(question));
    return el("li", {}, button);
  });
  at("example-list").replaceChildren(...items);
  at("examples").hidden = items.length === 0 || at("result").hidden === false;
}

export const hideExamples = () => {
  at("examples").hidden = true;
};
