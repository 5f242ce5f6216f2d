/** A log, live: of a model, that is the output of its hooks and its server, or llmux's own. */

import { call, texts } from "./api.js";
import { byId, h, patchOptions, say } from "./dom.js";
import { shortName } from "./format.js";

/** @typedef {import("./state.js").Store} Store */

const OWN = ""; // in place of a model's name, which is never empty
const TAIL = 300;
const MOST_LINES = 2000;
const LONGEST_LINE = 4000;
const RETRY_MS = 2000;
const AT_END_PX = 24;
// Terminal colours and cursor movements.
// eslint-disable-next-line no-control-regex
const ESCAPES = /\u001b\[[0-9;?]*[ -/]*[@-~]|\r/g;

export class Logs {
  /** @param {Store} store */
  constructor(store) {
    this._store = store;
    this._box = byId("logs-lines");
    this._select = byId("logs-model");
    this._search = byId("logs-search");
    this._follow = byId("logs-follow");
    /** @type {string[]} */
    this._lines = [];
    /** @type {string[]} */
    this._fresh = [];
    this._aborter = new AbortController();
    /** @type {string | null} */
    this._model = null;
    store.on("status", () => this._pick());
    this._select.addEventListener("change", () => this._open(this._select.value));
    this._follow.addEventListener("change", () => this._open(this._model ?? OWN));
    this._search.addEventListener("input", () => this._showAll());
  }

  /** Offer the existing models; select the active one at first. */
  _pick() {
    patchOptions(this._select, [...this._store.models, OWN], (name) => (name === OWN ? "llmux itself" : shortName(name, 24)));
    if (this._model !== null && (this._model === OWN || this._store.model(this._model))) return;
    const first = Object.values(this._store.status?.groups ?? {}).find((group) => group.active_model);
    this._open(first?.active_model ?? this._store.models[0] ?? OWN);
  }

  /** @param {string} model */
  _open(model) {
    this._model = this._select.value = model;
    this._aborter.abort();
    this._aborter = new AbortController();
    this._lines = [];
    this._fresh = [];
    this._showAll();
    this._read(model, this._aborter.signal);
  }

  /** Read until the user selects another model; start over when the connection breaks. @param {string} model @param {AbortSignal} signal */
  async _read(model, signal) {
    while (!signal.aborted) {
      const follow = this._follow.checked;
      try {
        const log = model === OWN ? "control/log" : `control/logs/${model.split("/").map(encodeURIComponent).join("/")}`;
        const response = await call(`${log}?tail=${TAIL}&follow=${follow}`, { signal });
        this._lines = [];
        this._showAll();
        let rest = "";
        for await (const text of texts(response)) {
          if (signal.aborted) return;
          const lines = (rest + text).split("\n");
          rest = /** @type {string} */ (lines.pop());
          if (rest.length > LONGEST_LINE) lines.push(rest), (rest = "");
          this._add(lines);
        }
        if (rest) this._add([rest]);
      } catch (error) {
        if (signal.aborted) return;
        say(byId("logs-count"), /** @type {Error} */ (error).message);
      }
      if (!follow) return;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  /** @param {string[]} lines */
  _add(lines) {
    if (this._fresh.length === 0) requestAnimationFrame(() => this._showFresh());
    this._fresh.push(...lines.map((line) => line.replace(ESCAPES, "").slice(0, LONGEST_LINE)));
    if (this._fresh.length > MOST_LINES) this._fresh.splice(0, this._fresh.length - MOST_LINES);
  }

  _showFresh() {
    const fresh = this._fresh;
    this._fresh = [];
    this._lines.push(...fresh);
    if (this._lines.length > MOST_LINES) this._lines.splice(0, this._lines.length - MOST_LINES);
    const atEnd = this._box.scrollHeight - this._box.scrollTop - this._box.clientHeight < AT_END_PX;
    this._box.append(...this._elements(fresh));
    while (this._box.childElementCount > MOST_LINES) this._box.firstElementChild.remove();
    this._sayCount();
    if (atEnd) this._box.scrollTop = this._box.scrollHeight;
  }

  _showAll() {
    this._box.replaceChildren(...this._elements(this._lines));
    this._sayCount();
    this._box.scrollTop = this._box.scrollHeight;
  }

  _sayCount() {
    say(byId("logs-count"), this._search.value ? `${this._box.childElementCount} of ${this._lines.length}` : `${this._lines.length} lines`);
  }

  /** The lines that match the search, with the matches marked. @param {string[]} lines */
  _elements(lines) {
    const words = this._search.value.toLowerCase();
    const found = words ? lines.filter((line) => line.toLowerCase().includes(words)) : lines;
    return found.map((line) => h(`div.line${/\b(error|fail(ed|ure)?|traceback)\b/i.test(line) ? ".bad" : ""}`, {}, ...(words ? marked(line, words) : [line || " "])));
  }
}

/** @param {string} line @param {string} words In lower case. @returns {(Node | string)[]} */
function marked(line, words) {
  const parts = [];
  const lower = line.toLowerCase();
  let start = 0;
  for (let at = lower.indexOf(words); at >= 0; at = lower.indexOf(words, start)) {
    parts.push(line.slice(start, at), h("mark", {}, line.slice(at, at + words.length)));
    start = at + words.length;
  }
  return [...parts, line.slice(start)];
}
