/** Chats with a model and shows what its users experience: wait, time to first token, tokens per second. */

import { ApiError, call, serverEvents } from "./api.js";
import { byId, h, patchOptions, say } from "./dom.js";
import { duration } from "./format.js";
import { askKeys } from "./keys.js";
import { Picture } from "./picture.js";

/** @typedef {import("./state.js").Store} Store */

const FRESHEN_MS = 100;
const AT_END_PX = 24;

export class Playground {
  /** @param {Store} store @param {(id: string) => void} onRequest Called when the id of a request is clicked. */
  constructor(store, onRequest) {
    this._onRequest = onRequest;
    this._log = byId("chat-log");
    this._text = byId("chat-text");
    this._picture = new Picture();
    /** @type {{role: string, content: string | object[]}[]} */
    this._messages = [];
    /** @type {AbortController | null} */
    this._aborter = null;
    store.on("status", () => patchOptions(byId("chat-model"), store.models));
    byId("chat-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this._send();
    });
    this._text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this._send();
    });
    byId("chat-stop").addEventListener("click", () => this._aborter?.abort());
    byId("chat-clear").addEventListener("click", () => {
      this._aborter?.abort();
      this._messages = [];
      this._picture.clear();
      this._log.replaceChildren();
    });
  }

  async _send() {
    const text = this._text.value.trim();
    const model = byId("chat-model").value;
    const image = this._picture.url;
    if (!(text || image) || !model || this._aborter) return;
    this._text.value = "";
    this._picture.clear();
    const content = image ? [...(text ? [{ type: "text", text }] : []), { type: "image_url", image_url: { url: image } }] : text;
    const messages = (this._messages = [...this._messages, { role: "user", content }]);
    this._log.append(h("div.bubble.user", {}, image ? h("img.sent", { src: image, alt: "The image of this message" }) : null, text));
    const answer = new Answer(this._log, model, this._onRequest);
    this._aborter = new AbortController();
    this._busy(true);
    const timer = setInterval(() => answer.measure(), FRESHEN_MS);
    try {
      const system = byId("chat-system").value.trim();
      const all = system ? [{ role: "system", content: system }, ...messages] : messages;
      await this._ask({ model, messages: all }, answer, this._aborter.signal);
      answer.end("");
    } catch (error) {
      answer.end(this._aborter.signal.aborted ? "stopped" : /** @type {Error} */ (error).message);
    } finally {
      clearInterval(timer);
      this._aborter = null;
      this._busy(false);
      if (answer.text && this._messages === messages) messages.push({ role: "assistant", content: answer.text });
    }
  }

  /** @param {object} question @param {Answer} answer @param {AbortSignal} signal */
  async _ask(question, answer, signal) {
    const body = JSON.stringify({ ...question, stream: true, stream_options: { include_usage: true }, max_tokens: Number(byId("chat-tokens").value) || undefined });
    const options = { key: /** @type {const} */ ("model"), method: "POST", headers: { "content-type": "application/json" }, body, signal };
    const response = await this._call(options);
    answer.begin(response);
    for await (const events of serverEvents(response)) {
      for (const { data } of events) if (data !== "[DONE]") answer.take(JSON.parse(data));
    }
  }

  /** Send it, and ask for a key as often as none or a wrong one was sent. @param {object} options @returns {Promise<Response>} */
  async _call(options) {
    for (;;) {
      try {
        return await call("v1/chat/completions", options);
      } catch (error) {
        const locked = error instanceof ApiError && error.status === 401;
        if (!locked || !(await askKeys("Model traffic requires a key.", "model"))) throw error;
      }
    }
  }

  /** @param {boolean} busy */
  _busy(busy) {
    byId("chat-send").hidden = busy;
    byId("chat-stop").hidden = !busy;
  }
}

/** One answer with its timings. */
class Answer {
  /** @param {HTMLElement} log @param {string} model @param {(id: string) => void} onRequest */
  constructor(log, model, onRequest) {
    this.text = "";
    this._log = log;
    this._onRequest = onRequest;
    this._start = performance.now();
    this._first = 0;
    this._last = 0;
    this._tokens = 0;
    this._waitMs = /** @type {number | null} */ (null);
    this._ended = false;
    this._words = h("div.words");
    this._figures = h("span.figures");
    this._link = h("span");
    log.append(h("div.bubble.model", {}, h("div.bubble-head", {}, model), this._words, h("div.bubble-foot", {}, this._figures, this._link)));
    this.measure();
  }

  /** @param {Response} response */
  begin(response) {
    const wait = response.headers.get("x-llmux-wait-ms");
    this._waitMs = wait === null ? null : Number(wait);
    const id = response.headers.get("x-llmux-request-id");
    if (id) this._link.append(" · ", h("button.link-button", { type: "button", onclick: () => this._onRequest(id) }, "why?"));
  }

  /** @param {any} chunk Of a streamed chat completion. */
  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message ?? "the model failed");
    const delta = chunk.choices?.[0]?.delta;
    const words = (delta?.reasoning_content ?? "") + (delta?.content ?? "");
    if (words) {
      this._last = performance.now();
      this._first ||= this._last;
      this._tokens += 1; // about one for each chunk; servers that count report it at the end
      const atEnd = this._log.scrollHeight - this._log.scrollTop - this._log.clientHeight < AT_END_PX;
      this.text += words;
      this._words.append(words);
      if (atEnd) this._log.scrollTop = this._log.scrollHeight;
    }
    if (chunk.usage?.completion_tokens) this._tokens = chunk.usage.completion_tokens;
  }

  measure() {
    const now = this._ended && this._last ? this._last : performance.now();
    const parts = [];
    if (this._waitMs !== null) parts.push(`wait ${duration(this._waitMs / 1000)}`);
    if (this._first) {
      parts.push(`first token ${duration((this._first - this._start) / 1000)}`);
      const secs = (now - this._first) / 1000;
      if (this._tokens > 1 && secs > 0) parts.push(`${((this._tokens - 1) / secs).toFixed(1)} tokens/s`);
      parts.push(`${this._tokens} tokens`);
    } else if (!this._ended) {
      parts.push(`waiting ${duration((now - this._start) / 1000)}`);
    }
    say(this._figures, parts.join(" · "));
  }

  /** @param {string} why Empty: it is whole. */
  end(why) {
    this._ended = true;
    this.measure();
    if (why) this._words.append(h("em", {}, `${this.text ? " " : ""}[${why}]`));
    this._log.scrollTop = this._log.scrollHeight;
  }
}
