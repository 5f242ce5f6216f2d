/** The cards at the top: each group's active model, its activity and for how long, and its models. */

import { byId, h, nameOf, patchList, say } from "./dom.js";
import { expectedWait } from "./explain.js";
import { duration, many } from "./format.js";
import { STATES } from "./looks.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").GroupStatus} GroupStatus
 * @typedef {import("./types.js").ModelStatus} ModelStatus
 */

const FRESHEN_MS = 250;

export class Groups {
  /** @param {Store} store @param {import("./actions.js").Actions} actions */
  constructor(store, actions) {
    this._store = store;
    this._actions = actions;
    this._parent = byId("groups");
    store.on("status", () => this.update());
    setInterval(() => document.hidden || this.update(), FRESHEN_MS);
  }

  update() {
    const status = this._store.status;
    if (!status) return;
    patchList(this._parent, Object.keys(status.groups), (name) => name, (name) => this._makeGroup(name), (card, name) => this._patchGroup(card, name));
  }

  /** @param {string} name */
  _makeGroup(name) {
    const card = h("article.card.group", { "aria-label": `Group ${name}` });
    const part = (/** @type {string} */ key, /** @type {any} */ element) => (card[key] = element);
    card.append(
      h("div.group-head", {},
        h("span.group-name", {}, name),
        part("pin", h("button.badge.pin", { type: "button", hidden: true, onclick: () => this._actions.unpin(name) })),
        part("standby", h("span.badge", { hidden: true })),
      ),
      h("div.group-top", {},
        h("div.group-now", {}, part("active", h("strong.active")), part("phase", h("span.phase"))),
        h("dl.facts-grid", {},
          h("div", {}, h("dt", {}, "in flight"), part("running", h("dd"))),
          h("div", {}, h("dt", {}, "waiting"), part("waiting", h("dd"))),
          h("div", {}, h("dt", {}, "longest wait"), part("oldest", h("dd"))),
        ),
      ),
      part("stays", h("div.small-text", { hidden: true })),
      h("div.group-progress", {}, part("progress", h("progress", { max: 1, "aria-label": `Progress of the switch in ${name}` })), part("times", h("span.times"))),
      h("div.scroll", {}, h("table.table.models", {},
        h("caption.unseen", {}, `Models of ${name}`),
        h("thead.unseen", {}, h("tr", {}, ...["Model", "State", "In flight and waiting", "Actions"].map((text) => h("th", { scope: "col" }, text)))),
        part("models", h("tbody")),
      )),
    );
    return card;
  }

  /** @param {any} card @param {string} name */
  _patchGroup(card, name) {
    const group = /** @type {any} */ (this._store.status).groups[name];
    const models = /** @type {[string, ModelStatus][]} */ (group.models.map((/** @type {string} */ model) => [model, this._store.model(model)]).filter((/** @type {any[]} */ pair) => pair[1]));
    const now = this._store.now();
    const running = models.reduce((sum, [, model]) => sum + model.in_flight, 0);
    const waiting = models.reduce((sum, [, model]) => sum + model.queued, 0);
    const shown = group.active_model ?? group.switch?.to ?? null;
    const { label, state, since, expected } = phaseOf(group, models, shown);
    card.dataset.state = state;
    say(card.active, shown ?? "nothing awake");
    say(card.phase, label);
    const took = Math.max(0, now - since);
    const switching = Boolean(group.switch);
    card.progress.hidden = !switching;
    if (switching && expected) card.progress.value = Math.min(1, took / expected);
    else card.progress.removeAttribute("value");
    card.progress.classList.toggle("late", Boolean(expected && took > expected));
    say(card.times, switching ? `${duration(took)} of ${expected ? `about ${duration(expected)}` : "unknown"}${expected && took > expected ? " (late)" : ""}` : `for ${duration(took)}`);
    card.stays.hidden = !group.stays || switching;
    say(card.stays, group.stays ? `stays with ${group.active_model}: ${group.stays}` : "");
    say(card.running, String(running));
    say(card.waiting, String(waiting));
    say(card.oldest, waiting ? duration(this._longestWait(models, now)) : "–");
    card.pin.hidden = !group.pinned;
    if (group.pinned) {
      say(card.pin, `pinned to ${group.pinned.model}${group.pinned.wait ? ", others wait" : ""} · unpin`);
    }
    card.standby.hidden = !group.standby;
    say(card.standby, `standby: ${group.standby}`);
    patchList(card.models, models, ([model]) => model, ([model]) => this._makeModel(model), (row, [model, status]) => this._patchModel(row, model, status, group, now));
  }

  /** @param {[string, ModelStatus][]} models @param {number} now */
  _longestWait(models, now) {
    const names = new Set(models.map(([name]) => name));
    let first = Infinity;
    for (const request of this._store.requests.values()) {
      if (request.phase === "waiting" && names.has(request.model)) first = Math.min(first, request.arrived);
    }
    if (first < Infinity) return now - first;
    const told = models.map(([, model]) => model.oldest_wait_secs ?? -1);
    return Math.max(...told) < 0 ? null : Math.max(...told);
  }

  /** @param {string} name */
  _makeModel(name) {
    const row = h("tr");
    const part = (/** @type {string} */ key, /** @type {any} */ element) => (row[key] = element);
    const button = (/** @type {string} */ text, /** @type {() => void} */ act) => h("button.small", { type: "button", "aria-label": `${text} ${name}`, onclick: act }, text);
    row.append(
      h("th", { scope: "row", title: name }, h("span.model-name", {}, nameOf(name)), part("error", h("div.error-text", { hidden: true }))),
      h("td", {}, part("chip", h("span.chip")), part("eta", h("div.small-text"))),
      h("td.num", {}, part("numbers", h("span"))),
      h("td.orders", {},
        part("switch", button("Switch", () => this._actions.switchTo(name))),
        part("pin", button("Pin", () => this._actions.pin(name))),
        part("sleep", button("Sleep", () => this._actions.sleep(name))),
      ),
    );
    return row;
  }

  /** @param {any} row @param {string} name @param {ModelStatus} model @param {GroupStatus} group @param {number} now */
  _patchModel(row, name, model, group, now) {
    row.chip.className = `chip ${model.state}`;
    say(row.chip, STATES[model.state].label);
    const wait = expectedWait(this._store, name, now);
    const waits = model.queued > 0 && !model.awake && wait !== null && model.state !== "draining";
    const away = waits || (["asleep", "failed"].includes(model.state) && wait !== null);
    say(row.eta, away ? (wait < 0.5 ? "soon" : `≈ ${duration(wait)} away`) : `for ${duration(Math.max(0, now - model.since))}`);
    row.eta.title = away ? "Roughly how long a request that arrived now would wait" : "";
    const slots = model.max_in_flight === null ? "" : `/${model.max_in_flight}`;
    const running = model.awake || model.in_flight ? `${model.in_flight}${slots} in flight` : "";
    const rate = model.tokens_per_sec ? `${model.tokens_per_sec.toFixed(1)} tokens/s` : "";
    // Breaks between the parts only.
    say(row.numbers, [running, model.queued ? `${model.queued} waiting` : "", rate].filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(", "));
    row.numbers.title = rate && "Tokens per second of its answers, over the last minute";
    row.numbers.classList.toggle("waits", model.queued > 0);
    const retry = model.retry_in_secs ? ` · retry in ${duration(model.retry_in_secs)}` : "";
    const failing = model.failing ? `Failing (${many(model.failed_wakes ?? 0, "wake")} in a row): tried only while no other model is used, or by Switch. ` : "";
    const trouble = model.last_error ? model.last_error + retry : "";
    const { failures, limit, error } = model.alive_trouble ?? { failures: 0, limit: 0, error: "" };
    const alive = failures ? `alive failed ${failures} of ${limit}: ${error}. ` : "";
    row.error.hidden = !(alive || failing || trouble);
    say(row.error, alive + failing + trouble);
    row.error.title = model.last_error ?? "";
    row.switch.disabled = model.awake;
    row.pin.disabled = group.pinned?.model === name;
    row.sleep.disabled = !model.awake;
  }
}

/**
 * A group's activity in words, its start, and its expected duration.
 * @param {GroupStatus} group @param {[string, ModelStatus][]} models @param {string | null} shown The model that is named already.
 */
function phaseOf(group, models, shown) {
  const busy = models.find(([, model]) => ["draining", "sleeping", "waking"].includes(model.state));
  const failed = models.find(([, model]) => model.state === "failed");
  const active = models.find(([name]) => name === group.active_model);
  const [name, model] = busy ?? active ?? failed ?? [null, null];
  if (!name || !model) return { label: group.switch ? "switching" : "idle", state: "asleep", since: group.switch?.started ?? group.since, expected: group.switch?.expected_secs };
  const left = model.state === "draining" ? `, ${many(model.in_flight, "request")} left` : "";
  const goal = group.switch && group.switch.to !== name ? ` → ${group.switch.to}` : "";
  const label = `${name === shown ? "" : `${name}: `}${STATES[model.state].label}${left}${goal}`;
  return { label, state: model.state, since: group.switch?.started ?? model.since, expected: group.switch?.expected_secs };
}

/** A change of state in words, for screen readers. @param {string} kind @param {any} data @returns {string} */
export function spoken(kind, data) {
  if (kind === "phase") return `${data.model} is ${STATES[/** @type {import("./types.js").ModelState} */ (data.state)].label}`;
  if (kind === "alive") return data.trouble ? `${data.model}: alive failed ${data.trouble.failures} of ${data.trouble.limit}` : `${data.model} is alive again`;
  if (kind === "failing") return data.failing ? `${data.model} keeps failing to wake` : `${data.model} has stopped failing`;
  if (kind === "mode") return `${data.mode} mode`;
  if (kind === "pin") return data.pinned ? `${data.group} is pinned to ${data.pinned.model}` : `${data.group} is unpinned`;
  if (kind === "reload") return data.ok ? "The config was reloaded" : "The config could not be reloaded";
  return "";
}
