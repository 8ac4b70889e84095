// Questions to begin with, made from the memory's own passages.

import { Failure, ask } from "./api.js";
import { el, isolated } from "./text.js";

const at = (id) => document.getElementById(id);

let areWanted = false;

/** Shows them until something is asked. choose(question) is called with the one that is wanted. */
export async function offerExamples(choose) {
  areWanted = true;
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
  at("examples").hidden = items.length === 0 || !areWanted; // something may have been asked before they came
}

/** With what explains the page to those who see it for the first time. */
export function hideExamples() {
  areWanted = false;
  for (const part of ["examples", "steps"]) at(part).hidden = true;
}
