// The address of a state: a question with the turns before it and its options, what is pinned, which passages are left out.

/** What comes after the path. view: token and passage are indexes or null; without has ids. */
export function written({ question, messages, ...options }, view) {
  const fields = new URLSearchParams({ q: messages ? messages.at(-1).content : question, ...options });
  if (messages) fields.append("turns", JSON.stringify(messages.slice(0, -1)));
  for (const id of view.without) fields.append("without", id);
  for (const name of ["token", "passage"]) if (view[name] !== null) fields.append(name, view[name] + 1);
  return `#${fields}`;
}

/** The request's fields as texts, and the view; null where there is no question. */
export function read(hash) {
  const fields = new URLSearchParams(hash.slice(1));
  if (!fields.has("q")) return null;
  const index = (name) => (/^[1-9]\d{0,5}$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) - 1 : null);
  const view = { without: fields.getAll("without"), token: index("token"), passage: index("passage") };
  const options = { k: "", as_of: "", variant: "", decoding: "exact", sentences: "", where: "", max_tokens: "" };
  for (const name of Object.keys(options)) options[name] = fields.get(name) ?? options[name];
  return { question: fields.get("q"), turns: turns(fields.get("turns")), options, view };
}

/** The turns before the question; none where the address has none that can be. */
function turns(text) {
  const isTurn = ({ role, content }) => ["user", "assistant"].includes(role) && typeof content === "string";
  try {
    const found = JSON.parse(text ?? "[]");
    return found.every(isTurn) ? found.map(({ role, content }) => ({ role, content })) : [];
  } catch {
    return [];
  }
}
