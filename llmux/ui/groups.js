/** The cards at the top: each group's active model, its activity and for how long, and its models. */

import { byId, h, nameOf, patchList, say } from "./dom.js";
import { expectedWait } from "./explain.js";
import { duration, many } from "./format.js";
import { STATES } from "./looks.js";
import { patchMemory } from "./memory.js";
import { awakeOf, change, moved, pinsOf, switchesOf } from "./switches.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").GroupStatus} GroupStatus
 * @typedef {import("./types.js").ModelStatus} ModelStatus
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
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
        part("pins", h("span.pins")),
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
      part("one", h("div.group-progress")),
      part("switches", h("ul.switches", { "aria-label": `Running switches of ${name}`, hidden: true })),
      part("memory", h("div.memory", { hidden: true })),
      h("div.scroll", {}, h("table.table.models", {},
        h("caption.unseen", {}, `Models of ${name}`),
        h("thead.unseen", {}, h("tr", {}, ...["Model", "State", "In flight and waiting", "Actions"].map((text) => h("th", { scope: "col" }, text)))),
        part("models", h("tbody")),
      )),
    );
    addProgress(card, card.one, `Progress of the switch in ${name}`);
    return card;
  }

  /** @param {any} card @param {string} name */
  _patchGroup(card, name) {
    const group = /** @type {GroupStatus} */ (/** @type {any} */ (this._store.status).groups[name]);
    const models = /** @type {[string, ModelStatus][]} */ (group.models.map((/** @type {string} */ model) => [model, this._store.model(model)]).filter((/** @type {any[]} */ pair) => pair[1]));
    const now = this._store.now();
    const running = models.reduce((sum, [, model]) => sum + model.in_flight, 0);
    const waiting = models.reduce((sum, [, model]) => sum + model.queued, 0);
    const switches = switchesOf(group);
    const awake = awakeOf(group);
    const several = switches.length > 1;
    const shown = awake.length ? awake.join(", ") : group.switch?.to ?? null;
    const { label, state, since, expected } = phaseOf(group, models, shown);
    card.dataset.state = state;
    say(card.active, shown ?? "nothing awake");
    card.active.classList.toggle("many", awake.length > 2);
    say(card.phase, several ? `${switches.length} switches run` : label);
    card.one.hidden = several;
    patchProgress(card, Math.max(0, now - since), switches.length > 0, expected);
    card.switches.hidden = !several;
    patchList(card.switches, several ? switches : [], (record) => String(record.id), makeSwitch, (row, record) => patchSwitch(row, record, models, now));
    patchMemory(card.memory, group.memory ?? [], this._store);
    card.stays.hidden = !group.stays || switches.length > 0;
    say(card.stays, group.stays ? `stays with ${awake.join(", ")}: ${group.stays}` : "");
    say(card.running, String(running));
    say(card.waiting, String(waiting));
    say(card.oldest, waiting ? duration(this._longestWait(models, now)) : "–");
    const pins = pinsOf(group);
    patchList(card.pins, pins, (pin) => `${pins.length > 1} ${pin.model}`, (pin) => {
      const what = pins.length > 1 ? { model: pin.model } : { group: name };
      return h("button.badge.pin", { type: "button", onclick: () => this._actions.unpin(what) });
    }, (badge, pin) => say(badge, `pinned to ${pin.model}${pin.wait ? ", others wait" : ""} · unpin`));
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
      h("th", { scope: "row", title: name }, h("span.model-name", {}, nameOf(name)), part("kept", h("span.badge", { hidden: true, title: "Only operators put it to sleep for another model" }, "kept")), part("error", h("div.error-text", { hidden: true }))),
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
    say(row.chip, model.stopped && model.state === "asleep" ? "stopped" : STATES[model.state].label);
    row.chip.title = model.stopped ? "Asleep, and its stop hook has run" : "";
    row.kept.hidden = !model.kept;
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
    row.pin.disabled = pinsOf(group).some((pin) => pin.model === name);
    row.sleep.disabled = !model.awake;
  }
}

/** @param {any} owner Gets the parts. @param {Element} parent @param {string} label */
function addProgress(owner, parent, label) {
  owner.progress = h("progress", { max: 1, "aria-label": label });
  owner.times = h("span.times");
  parent.append(owner.progress, owner.times);
}

/** @param {any} owner @param {number} took @param {boolean} switching @param {number | null | undefined} expected */
function patchProgress({ progress, times }, took, switching, expected) {
  progress.hidden = !switching;
  if (switching && expected) progress.value = Math.min(1, took / expected);
  else progress.removeAttribute("value");
  progress.classList.toggle("late", Boolean(expected && took > expected));
  say(times, switching ? `${duration(took)} of ${expected ? `about ${duration(expected)}` : "unknown"}${expected && took > expected ? " (late)" : ""}` : `for ${duration(took)}`);
}

/** One of several running switches. @param {SwitchRecord} record */
function makeSwitch(record) {
  const row = h("li", {}, h("strong", {}, change(record)));
  row.append((row.phase = h("span.phase")), (row.bar = h("div.group-progress")));
  addProgress(row, row.bar, `Progress of the switch to ${record.to}`);
  return row;
}

/** @param {any} row @param {SwitchRecord} record @param {[string, ModelStatus][]} models @param {number} now */
function patchSwitch(row, record, models, now) {
  const busy = models.find(([name, model]) => moved(record).includes(name) && ["draining", "sleeping", "waking"].includes(model.state));
  say(row.phase, busy ? activity(...busy) : "waits for its turn");
  patchProgress(row, Math.max(0, now - record.started), true, record.expected_secs);
}

/** @param {string} name @param {ModelStatus} model */
function activity(name, model) {
  const left = model.state === "draining" ? `, ${many(model.in_flight, "request")} left` : "";
  return `${name}: ${STATES[model.state].label}${left}`;
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
  if (kind === "cordon") return data.cordoned ? "llmux is cordoned" : "llmux is uncordoned";
  if (kind === "pin") return data.pinned ? `${data.group} is pinned to ${data.pinned.model}` : `${data.group} is unpinned`;
  if (kind === "reload") return data.ok ? "The config was reloaded" : "The config could not be reloaded";
  return "";
}
