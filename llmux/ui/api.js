/** HTTP client for llmux: JSON, streamed text and server-sent events, with the key in a header. */

import { authorization } from "./keys.js";

/** @typedef {import("./keys.js").KeyKind} KeyKind */

/** What the key of this tab opens, as the latest answer of the control API has it. */
export const access = { readsOnly: false };

const BASE = new URL("../", document.baseURI);

/** A response with an error status. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * @param {string} path Below llmux's root, without a leading slash.
 * @param {RequestInit & {key?: KeyKind}} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError} On an error status.
 */
export async function call(path, { key = "control", ...options } = {}) {
  const headers = { ...authorization(key), .../** @type {any} */ (options.headers) };
  const response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
  if (path.startsWith("control/") && response.status !== 401) access.readsOnly = response.headers.get("x-llmux-access") === "read";
  if (response.ok) return response;
  const text = await response.text();
  let error = { message: text || response.statusText, code: "" };
  try {
    error = JSON.parse(text).error ?? error;
  } catch {
    // Not llmux's JSON: the text is the message.
  }
  throw new ApiError(response.status, error.code, error.message);
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export const getJson = async (path, signal) => (await call(path, { signal })).json();

/** @param {string} path @param {object} body @returns {Promise<any>} */
export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/**
 * A body's text as it arrives.
 * @param {Response} response
 */
export async function* texts(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @typedef {{id: string, event: string, data: string}} ServerEvent */

/**
 * Server-sent events, in the batches in which they arrive; a batch may be empty (comments).
 * @param {Response} response
 * @returns {AsyncGenerator<ServerEvent[]>}
 */
export async function* serverEvents(response) {
  let rest = "";
  for await (const text of texts(response)) {
    const blocks = (rest + text.replaceAll("\r", "")).split("\n\n");
    rest = /** @type {string} */ (blocks.pop());
    yield blocks.map(parseEvent).filter((event) => event.data !== "");
  }
}

/** @param {string} block @returns {ServerEvent} */
function parseEvent(block) {
  const event = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue; // a comment
    const value = line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    const name = line.slice(0, colon);
    if (name === "data") event.data += event.data ? `\n${value}` : value;
    else if (name === "id") event.id = value;
    else if (name === "event") event.event = value;
  }
  return event;
}
