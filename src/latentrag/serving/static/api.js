// Requests to the server that this page came from.

import { sendable } from "./thread.js";

/** What a person is told when something goes wrong. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const AWAY = "The server does not answer; check that latentrag serve is running, then try again.";
const KEY = "latentrag-api-key"; // kept until the tab is closed

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** A response that succeeded. Throws Failure, or AbortError where it was cancelled. */
async function call(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  const headers = authorization();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify(sendable(body));
  const response = await reached(fetch(path, { method, headers, body: sent, signal }));
  if (!response.ok) throw await failure(response);
  return response;
}

/** The JSON of a response. Throws as the calls do. */
export async function ask(path, { body, signal, method } = {}) {
  const response = await call(path, { body, signal, method });
  return reached(response.json());
}

/**
 * Sends files in one form. onSent: gets the share that has been sent. Returns: the JSON of the response. Throws as the
 * calls do. (Fetch does not tell how much it has sent.)
 */
export function upload(path, files, { signal, onSent }) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  const request = new XMLHttpRequest();
  request.open("POST", path);
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => onSent(loaded / total));
  signal.addEventListener("abort", () => request.abort());
  return new Promise((resolve, reject) => {
    request.addEventListener("abort", () => reject(signal.reason));
    request.addEventListener("error", () => reject(new Failure(AWAY)));
    request.addEventListener("load", async () => {
      const headers = { "Retry-After": request.getResponseHeader("Retry-After") ?? "" };
      const response = new Response(request.responseText, { status: request.status, headers });
      if (response.ok) resolve(await response.json());
      else reject(await failure(response));
    });
    request.send(form);
  });
}

/** The events of a stream, as [name, data]. Throws as the calls do, and where the stream ends with an error. */
export async function* stream(path, { body, signal }) {
  const response = await call(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith(":")) continue; // a comment, which keeps the connection alive
      const [name, data] = parsed(event);
      if (name === "error") throw new Failure(data.error.message);
      yield [name, data];
    }
  }
}

function parsed(event) {
  let [name, data] = ["", ""];
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  return [name, JSON.parse(data)];
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(AWAY);
  }
}

async function failure(response) {
  if (response.status === 401) {
    const said = sessionStorage.getItem(KEY) ? "The server does not know this key. Check it, or ask" : "This server wants a key. Ask";
    return new Failure(`${said} whoever runs it, then enter it below the question.`, 401);
  }
  let message = `the server answered with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between the page and the server has answered; its status is all there is to say.
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 && wait) message = `The server is busy: ${message} (in ${wait} s)`;
  return new Failure(`${message[0].toUpperCase()}${message.slice(1)}.`, response.status);
}
