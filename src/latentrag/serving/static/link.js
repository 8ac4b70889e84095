// The address of a state: a question with its options, what is pinned, which passages are left out.

/** What comes after the path. view: token and passage are indexes or null; without has ids. */
export function written({ question, ...options }, view) {
  const fields = new URLSearchParams({ q: question, ...options });
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
  return { question: fields.get("q"), options, view };
}
