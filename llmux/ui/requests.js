/** The table of requests. */

import { byId, h, patchList, say, sayName } from "./dom.js";
import { bytes, duration } from "./format.js";
import { expectedWait, waitEnd } from "./explain.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 */

const MOST_ROWS = 200;
const FRESHEN_MS = 500;

export class Requests {
  /**
   * @param {Store} store @param {import("./actions.js").Actions} actions
   * @param {(request: RequestInfo) => void} onChosen
   */
  constructor(store, actions, onChosen) {
    this._store = store;
    this._actions = actions;
    this._onChosen = onChosen;
    this._body = byId("requests-table").tBodies[0];
    this._last = 0;
    store.on("requests", () => this._soon());
    byId("requests-search").addEventListener("input", () => this.update());
    byId("requests-ended").addEventListener("change", () => this.update());
    setInterval(() => document.hidden || this.update(), FRESHEN_MS);
  }

  /** Throttled: under load, drawing every frame costs too much. */
  _soon() {
    if (performance.now() - this._last > FRESHEN_MS / 2) this.update();
  }

  update() {
    this._last = performance.now();
    const rows = this._rows();
    const now = this._store.now();
    patchList(this._body, rows, (request) => request.id, (request) => this._make(request.id), (row, request) => patch(row, request, now, this._store));
    const { total } = this._store;
    say(byId("requests-count"), total > rows.length ? `${total}, ${rows.length} shown` : String(total));
    byId("requests-none").hidden = rows.length > 0;
  }

  /** @returns {RequestInfo[]} Those to show: the ones that run, oldest first, then those that have ended. */
  _rows() {
    const words = byId("requests-search").value.trim().toLowerCase();
    const found = (/** @type {RequestInfo} */ request) =>
      !words || [request.id, request.model, request.client ?? "", request.path, request.phase].some((text) => text.toLowerCase().includes(words));
    const rows = [];
    for (const request of this._store.requests.values()) {
      if (found(request) && rows.push(request) >= MOST_ROWS) return rows;
    }
    if (!byId("requests-ended").checked) return rows;
    for (const request of [...this._store.ended.values()].reverse()) {
      if (found(request) && rows.push(request) >= MOST_ROWS) break;
    }
    return rows;
  }

  /** @param {string} id */
  _make(id) {
    const row = h("tr");
    const part = (/** @type {string} */ key, /** @type {any} */ element) => (row[key] = element);
    row.append(
      h("th", { scope: "row" }, h("button.link-button.mono", { type: "button", title: "Why did it wait?", onclick: () => this._choose(id) }, id)),
      part("model", h("td")),
      h("td", {}, part("phase", h("span.chip"))),
      part("age", h("td.num")), part("waited", h("td.num")), part("first", h("td.num")),
      part("client", h("td.mono")), part("call", h("td.mono.call")),
      part("in", h("td.num")), part("out", h("td.num")), part("tokens", h("td.num")), part("rate", h("td.num")),
      h("td", {}, part("cancel", h("button.small.danger-text", { type: "button", "aria-label": `Cancel request ${id}`, onclick: () => this._actions.cancel(id) }, "Cancel"))),
    );
    return row;
  }

  /** @param {string} id */
  _choose(id) {
    const request = this._store.requests.get(id) ?? this._store.ended.get(id);
    if (request) this._onChosen(request);
  }
}

/** @param {any} row @param {RequestInfo} request @param {number} now @param {Store} store */
function patch(row, request, now, store) {
  const ended = request.phase === "ended";
  row.classList.toggle("ended", ended);
  sayName(row.model, request.model || "–");
  row.phase.className = `chip request-${request.phase}`;
  say(row.phase, ended ? `ended ${request.status ?? ""}` : request.phase);
  say(row.age, duration((request.ended ?? now) - request.arrived));
  const more = request.phase === "waiting" ? expectedWait(store, request.model, now) : null;
  say(row.waited, `${duration(waitEnd(request, now) - request.arrived)}${more === null ? "" : ` + ${more < 0.5 ? "soon" : `≈ ${duration(more)}`}`}`);
  row.waited.title = more === null ? "" : "So far, and how much longer it is expected to wait";
  say(row.first, duration(request.first_byte_secs));
  say(row.client, request.client ?? "–");
  say(row.call, `${request.method} ${request.path}`);
  row.call.title = row.call.textContent;
  say(row.in, bytes(request.bytes_in));
  say(row.out, bytes(request.bytes_out));
  say(row.tokens, tokens(request));
  say(row.rate, request.tokens_per_sec == null ? "–" : request.tokens_per_sec.toFixed(1));
  row.cancel.hidden = ended;
}

/** Tokens of the prompt and of the answer. @param {RequestInfo} request @returns {string} */
function tokens({ tokens_in: asked, tokens_out: answered }) {
  return asked == null && answered == null ? "–" : `${asked ?? "?"} → ${answered ?? "?"}`;
}
