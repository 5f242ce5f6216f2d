/** Feeds the store: events, resumed after a break, and history after each fresh start. */

import { ApiError, call, getJson, serverEvents } from "./api.js";
import { askKeys, wrongKey } from "./keys.js";
import { KEPT_SECS } from "./state.js";

/** @typedef {import("./state.js").Store} Store */
/** @typedef {"connecting" | "live" | "down" | "locked"} Link */

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
const SILENCE_MS = 40_000; // llmux sends at least a comment every 15 s
const STATUS_EVERY_MS = 10_000;
const REQUESTS_EVERY_MS = 2_000;
/** Events that change costs, estimates, errors or models. */
const CHANGES_STATUS = new Set(["switch", "alive", "failing", "pin", "mode", "cordon", "reload"]);

/** Reconnects forever. */
export class Feed {
  /**
   * @param {Store} store
   * @param {(link: Link, why: string) => void} onLink Called when the connection has come or gone.
   * @param {(kind: string, data: any) => void} onEvent Called for each event, after the store.
   */
  constructor(store, onLink, onEvent) {
    this._store = store;
    this._onLink = onLink;
    this._onEvent = onEvent;
    this._lastId = "";
    this._live = false;
    this._wake = () => {};
    this._statusSoon = 0;
    addEventListener("online", () => this._wake());
  }

  async run() {
    setInterval(() => this._refresh(() => this._readStatus()), STATUS_EVERY_MS);
    setInterval(() => this._refresh(() => this._readRequests()), REQUESTS_EVERY_MS);
    let pauseMs = FIRST_PAUSE_MS;
    for (;;) {
      try {
        await this._follow(() => (pauseMs = FIRST_PAUSE_MS));
        this._onLink("down", "llmux closed the connection");
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) {
          this._live = false;
          this._onLink("locked", wrongKey("control") || "This llmux requires a control key.");
          await askKeys("This llmux requires a control key.", "control").then((given) => given || this._pause(3600_000));
          continue;
        }
        this._onLink("down", error instanceof ApiError ? error.message : "llmux does not respond");
      }
      this._live = false;
      await this._pause(pauseMs * (0.75 + Math.random() / 2));
      pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
    }
  }

  /** Reconnect now: there are new keys, or the user asked for it. */
  retry() {
    this._wake();
  }

  /** @param {number} ms @returns {Promise<void>} */
  _pause(ms) {
    return new Promise((resolve) => {
      this._wake = resolve;
      setTimeout(resolve, ms);
    });
  }

  /** Follow one connection to its end. @param {() => void} onFirst Called after the first batch. */
  async _follow(onFirst) {
    const aborter = new AbortController();
    let timer = setTimeout(() => aborter.abort(), SILENCE_MS);
    try {
      const headers = this._lastId ? { "last-event-id": this._lastId } : {};
      const response = await call("control/events", { headers, signal: aborter.signal });
      for await (const events of serverEvents(response)) {
        clearTimeout(timer);
        timer = setTimeout(() => aborter.abort(), SILENCE_MS);
        for (const event of events) await this._take(event);
        if (!this._live && this._store.status) {
          this._live = true;
          this._onLink("live", "");
          onFirst();
        }
      }
    } finally {
      clearTimeout(timer);
      aborter.abort();
    }
  }

  /** @param {import("./api.js").ServerEvent} event */
  async _take({ id, event: kind, data }) {
    const said = JSON.parse(data);
    if (kind === "lagged") {
      this._lastId = ""; // events were lost: start over
      return;
    }
    if (id) this._lastId = id;
    if (kind === "status") {
      this._store.applyStatus(said);
      // Events that arrive meanwhile stay in the stream and may repeat history; the store ignores duplicates.
      const [history] = await Promise.all([getJson(`control/history?secs=${KEPT_SECS}`), this._readRequests()]);
      this._store.applyHistory(history);
    } else {
      this._store.applyEvent(kind, said);
      if (kind === "requests" && said.omitted) this._refresh(() => this._readRequests());
      if (CHANGES_STATUS.has(kind)) this._readStatusSoon();
    }
    this._onEvent(kind, said);
  }

  _readStatusSoon() {
    clearTimeout(this._statusSoon);
    this._statusSoon = setTimeout(() => this._refresh(() => this._readStatus()), 300);
  }

  /** Refresh something, unless the page is hidden. @param {() => Promise<void>} read */
  _refresh(read) {
    if (this._live && !document.hidden) read().catch(() => {}); // the event stream reports the reason
  }

  async _readStatus() {
    const status = await getJson("control/status");
    if (this._store.knowsBetter(status)) this._readStatusSoon();
    else this._store.applyStatus(status);
  }

  async _readRequests() {
    this._store.applyRequests(await getJson("control/requests?limit=200"));
  }
}
