/** The panel for a switch or a request: what happened, for how long, and why. */

import { byId, h } from "./dom.js";
import { bytes, clock, duration, many } from "./format.js";
import { explain, waitEnd } from "./explain.js";
import { STATES } from "./looks.js";
import { ruleInWords } from "./rules.js";
import { change, moved } from "./switches.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 * @typedef {{from: number, to: number, state: import("./types.js").ModelState, text: string}} Bar
 */

const SLACK_SECS = 0.05; // between the clock readings of a switch and of its hooks

/** Shows one switch or one request. */
export class Detail {
  /** @param {Store} store @param {import("./timeline.js").Timeline} timeline */
  constructor(store, timeline) {
    this._store = store;
    this._timeline = timeline;
    this._panel = byId("detail");
    /** @type {{kind: "switch", id: number} | {kind: "request", id: string} | null} */
    this._shown = null;
    this._text = "";
    /** @type {HTMLElement | null} */
    this._opener = null;
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this._shown && !document.querySelector("dialog[open]")) this.close();
    });
    for (const topic of /** @type {const} */ (["timeline", "requests"])) store.on(topic, () => this._render());
  }

  /** @param {SwitchRecord} record */
  showSwitch(record) {
    this._open({ kind: "switch", id: record.id });
    this._timeline.chooseRequest(null);
    this._timeline.chooseSwitch(record);
  }

  /** @param {RequestInfo} request */
  showRequest(request) {
    this._open({ kind: "request", id: request.id });
    this._timeline.chooseSwitch(null);
    this._timeline.chooseRequest(request);
  }

  /** @param {any} what */
  _open(what) {
    if (!this._shown) this._opener = /** @type {HTMLElement} */ (document.activeElement);
    this._shown = what;
    this._text = "";
    this._panel.hidden = false;
    this._render();
    this._panel.querySelector("button")?.focus({ preventScroll: true });
    this._timeline.comeIntoSight();
  }

  close() {
    this._shown = null;
    this._panel.hidden = true;
    this._timeline.chooseSwitch(null);
    this._timeline.chooseRequest(null);
    this._opener?.focus();
  }

  _render() {
    if (!this._shown) return;
    const content = this._shown.kind === "switch" ? this._switch(this._shown.id) : this._request(this._shown.id);
    const text = content.map((node) => node?.outerHTML ?? "").join("");
    if (text === this._text) return; // unchanged elements keep their focus and selection
    this._text = text;
    const focused = this._panel.contains(document.activeElement);
    const close = h("button.quiet.close", { type: "button", "aria-label": "Close", onclick: () => this.close() }, "×");
    this._panel.replaceChildren(close, ...content.filter(Boolean));
    if (focused) close.focus({ preventScroll: true });
  }

  /** @param {number} id @returns {any[]} */
  _switch(id) {
    const record = this._store.switches.get(id);
    if (!record) return [h("h2", { id: "detail-title" }, `Switch ${id}`), h("p", {}, "No longer remembered.")];
    const end = record.ended ?? this._store.now();
    const total = end - record.started;
    const result = record.result ?? "running";
    const recalled = record.id < 0; // from the journal, which does not keep all of it
    const cause = record.request && (this._store.requests.get(record.request) ?? this._store.ended.get(record.request));
    return [
      h("h2", { id: "detail-title" }, change(record)),
      h("p", {}, h(`span.chip.${result === "failure" ? "failed" : "plain"}`, {}, result), ` ${recalled ? "before the restart" : `switch ${record.id}`} · ${clock(record.started, true)} · ${duration(total)}`),
      record.error ? h("p.error-text", {}, record.error) : null,
      h("h3", {}, "Why"),
      h("dl.pairs", {},
        ...pair("Reason", record.reason || "–"),
        ...(recalled ? [] : pair("Rule", ruleInWords(record.rule))),
        ...(recalled ? [] : pair("For request", record.request
          ? cause
            ? h("button.link-button", { type: "button", onclick: () => this.showRequest(cause) }, record.request)
            : h("code", {}, record.request)
          : "nobody waited")),
        ...(recalled ? [] : pair("Waiting then", many(record.waiting, "request"))),
      ),
      h("h3", {}, "Phases"),
      bars(this._phases(record, end), record.started, end),
      h("h3", {}, "Cost"),
      h("dl.pairs", {},
        ...pair("Took", duration(total)),
        ...(recalled ? [] : pair("Expected", record.expected_secs === null ? "unknown: not seen before" : `${duration(record.expected_secs)}${compare(total, record)}`)),
        ...(record.ended === null ? [] : [...pair("Drain", duration(record.drain_secs)), ...pair("Hooks", duration(record.hook_secs))]),
      ),
      h("h3", {}, "Hooks"),
      ...this._hooks(record, end),
    ];
  }

  /** @param {SwitchRecord} record @param {number} end @returns {Bar[]} */
  _phases(record, end) {
    const models = [...new Set(moved(record))];
    return models
      .flatMap((model) =>
        (this._store.states.get(model)?.within(record.started, end) ?? [])
          .filter(({ state }) => ["draining", "sleeping", "waking", "failed"].includes(state))
          .map((stretch) => ({ ...stretch, text: `${model} ${STATES[stretch.state].label}` })),
      )
      .filter((bar) => bar.to - bar.from > 0.0005)
      .sort((a, b) => a.from - b.from);
  }

  /** @param {SwitchRecord} record @param {number} end */
  _hooks(record, end) {
    const runs = [...this._store.hooks.values()].filter(
      (run) => moved(record).includes(run.model) && run.hook !== "alive" &&
        run.started >= record.started - SLACK_SECS && run.started <= end + SLACK_SECS,
    );
    if (!runs.length) return [h("p.none", {}, record.id < 0 ? "Not kept over a restart; the models' logs have their output." : "None has run yet.")];
    return runs.map((run) =>
      h("details.hook", { open: run.ok === false },
        h("summary", {}, h("span", {}, `${run.hook} ${run.model}`), h(`span.chip.${run.ok === false ? "failed" : "plain"}`, {}, run.ok === null ? "running" : run.ok ? "ok" : "failed"), h("span.num", {}, duration(run.duration_secs ?? this._store.now() - run.started))),
        run.error ? h("p.error-text", {}, run.error) : null,
        h("pre", { tabindex: "0", "aria-label": `Output of ${run.hook} ${run.model}` }, run.output || "(no output)"),
      ),
    );
  }

  /** @param {string} id @returns {any[]} */
  _request(id) {
    const request = this._store.requests.get(id) ?? this._store.ended.get(id);
    if (!request) return [h("h2", { id: "detail-title" }, `Request ${id}`), h("p", {}, "No longer remembered.")];
    const now = this._store.now();
    const end = waitEnd(request, now);
    const { parts, switches } = explain(this._store, request);
    const waited = end - request.arrived;
    return [
      h("h2", { id: "detail-title" }, waited > 0.001 ? `Why it waited ${duration(waited)}` : "It did not wait"),
      h("p", {}, h("span.chip.plain", {}, request.ended ? `ended, ${request.status ?? ""}` : request.phase), ` ${request.model || "no model"} · `, h("code", {}, request.id)),
      parts.length ? bars(parts.map((part) => ({ ...part, text: part.why })), request.arrived, end) : null,
      switches.length ? h("h3", {}, many(switches.length, "switch").replace(/switchs$/, "switches")) : null,
      switches.length
        ? h("ul.plain-list", {}, ...switches.slice(-20).map((record) => h("li", {},
            h("button.link-button", { type: "button", onclick: () => this.showSwitch(record) }, change(record)),
            ` ${duration((record.ended ?? now) - record.started)}${record.request === id ? ", for this request" : ""}: ${record.rule || "–"}${record.reason ? `, ${record.reason}` : ""}`)))
        : null,
      h("h3", {}, "Request"),
      h("dl.pairs", {},
        ...pair("Arrived", clock(request.arrived, true)),
        ...pair("Call", h("code", {}, `${request.method} ${request.path}`)),
        ...pair("Client", request.client ?? "–"),
        ...(request.first_byte_secs == null ? [] : pair("First token", `${duration(request.first_byte_secs)} after arrival`)),
        ...(request.tokens_out == null ? [] : pair("Tokens", `${request.tokens_in ?? "?"} → ${request.tokens_out}${request.tokens_per_sec == null ? "" : `, ${request.tokens_per_sec.toFixed(1)} a second`}`)),
        ...pair("In / out", `${bytes(request.bytes_in)} / ${bytes(request.bytes_out)}`),
        ...(request.ended ? pair("Ended", `${clock(request.ended, true)}, after ${duration(request.ended - request.arrived)}`) : []),
      ),
    ];
  }
}

/** @param {string} name @param {any} value */
const pair = (name, value) => [h("dt", {}, name), h("dd", {}, value)];

/** @param {number} total @param {SwitchRecord} record */
function compare(total, record) {
  if (record.ended === null || !record.expected_secs) return "";
  const percent = Math.round((total / record.expected_secs - 1) * 100);
  return Math.abs(percent) < 5 ? " (as expected)" : ` (${Math.abs(percent)} % ${percent > 0 ? "longer" : "shorter"})`;
}

/** Intervals as bars below each other, each at its position in time. @param {Bar[]} parts @param {number} from @param {number} to */
function bars(parts, from, to) {
  const span = Math.max(0.001, to - from);
  const list = h("ol.bars");
  for (const part of parts) {
    const bar = h(`span.bar-fill.${part.state}`);
    bar.style.left = `${(100 * (part.from - from)) / span}%`;
    bar.style.width = `${Math.max(0.8, (100 * (part.to - part.from)) / span)}%`;
    list.append(h("li", {}, h("span.bar-text", {}, part.text), h("span.num", {}, duration(part.to - part.from)), h("span.bar-track", {}, bar)));
  }
  return list;
}
