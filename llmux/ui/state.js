/** The page's data: built from status, history and events, and limited to the last hour. */

import { Counts, States } from "./series.js";
import { switchesOf } from "./switches.js";

/**
 * @typedef {import("./types.js").Status} Status
 * @typedef {import("./types.js").History} History
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").HookRun} HookRun
 * @typedef {import("./types.js").Run} Run
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 * @typedef {import("./types.js").GroupStatus} GroupStatus
 * @typedef {import("./types.js").ModelStatus} ModelStatus
 * @typedef {"status" | "timeline" | "requests"} Topic
 */

export const KEPT_SECS = 3600;
const MOST_SWITCHES = 4000;
const MOST_HOOKS = 4000;
const MOST_ENDED = 500;
const MOST_REQUESTS = 5000;
const LONGEST_OUTPUT = 8000;

/** The last hour. Listeners are notified of changed topics at the next frame. */
export class Store {
  constructor() {
    /** @type {Map<Topic, Set<() => void>>} */
    this._listeners = new Map();
    /** @type {Set<Topic>} */
    this._dirty = new Set();
    this._clear();
  }

  _clear() {
    /** @type {Status | null} */
    this.status = null;
    /** The server's clock minus this machine's, in seconds. */
    this.offset = 0;
    /** When llmux ran, oldest first; nothing is known of the time between. @type {Run[]} */
    this.runs = [];
    /** @type {Map<string, States>} */
    this.states = new Map();
    /** @type {Map<string, Counts>} */
    this.counts = new Map();
    /** @type {Map<number, SwitchRecord>} */
    this.switches = new Map();
    /** @type {Map<string, HookRun>} */
    this.hooks = new Map();
    /** Current requests. @type {Map<string, RequestInfo>} */
    this.requests = new Map();
    /** Number of current requests; under load, more than are listed. */
    this.total = 0;
    /** The latest finished requests, oldest first. @type {Map<string, RequestInfo>} */
    this.ended = new Map();
    for (const topic of /** @type {Topic[]} */ (["status", "timeline", "requests"])) this._mark(topic);
  }

  /** @param {Topic} topic @param {() => void} listener */
  on(topic, listener) {
    const listeners = this._listeners.get(topic) ?? new Set();
    this._listeners.set(topic, listeners.add(listener));
  }

  /** @param {Topic} topic */
  _mark(topic) {
    if (this._dirty.size === 0) requestAnimationFrame(() => this._tell());
    this._dirty.add(topic);
  }

  _tell() {
    const topics = [...this._dirty];
    this._dirty.clear();
    for (const topic of topics) for (const listener of this._listeners.get(topic) ?? []) listener();
  }

  /** The server's time now, in Unix seconds. */
  now() {
    return Date.now() / 1000 + this.offset;
  }

  /** @returns {string[]} All models, group by group. */
  get models() {
    return this.status ? Object.values(this.status.groups).flatMap((group) => group.models) : [];
  }

  /** @param {string} model @returns {ModelStatus | undefined} */
  model(model) {
    return this.status?.models[model];
  }

  /** @param {Status} status */
  applyStatus(status) {
    if (this.status && this.status.boot !== status.boot) this._clear();
    this.offset = status.at - Date.now() / 1000;
    this.status = status;
    if (!this.runs.length) this.runs = [{ started: status.started, ended: null }];
    this._absorbStatus(status);
  }

  /** True if events are newer than this status. @param {Status} status */
  knowsBetter(status) {
    if (this.status?.boot !== status.boot) return false;
    return Object.entries(status.models).some(([name, { since }]) => (this.model(name)?.since ?? 0) > since + 0.05);
  }

  /** Add the current values of a status to the hour. @param {Status} status */
  _absorbStatus(status) {
    for (const [name, model] of Object.entries(status.models)) {
      this._pushState(name, model.since, model.state);
      this._countsOf(name).push(status.at, model.in_flight, model.queued);
    }
    for (const map of [this.states, this.counts]) {
      for (const name of map.keys()) if (!(name in status.models)) map.delete(name);
    }
    for (const group of Object.values(status.groups)) for (const record of switchesOf(group)) this._addSwitch(record);
    this._mark("status");
    this._mark("timeline");
  }

  /** Replace the known past by the server's history. @param {History} history */
  applyHistory(history) {
    this.runs = history.runs;
    this.states = new Map();
    this.counts = new Map();
    this.switches = new Map();
    this.hooks = new Map();
    for (const phase of history.phases) this._pushState(phase.model, phase.at, phase.state, phase.left);
    for (const counts of history.counts) this._addCounts(counts);
    for (const record of history.switches) this._addSwitch(record);
    for (const run of history.hooks) this._addHook(run);
    if (this.status) this._absorbStatus(this.status);
  }

  /** Replace the list of current requests. @param {{total: number, requests: RequestInfo[]}} list */
  applyRequests(list) {
    this.requests = new Map(list.requests.map((request) => [request.id, request]));
    this.total = list.total;
    this._mark("requests");
  }

  /** @param {string} kind @param {any} data */
  applyEvent(kind, data) {
    const apply = EVENTS[kind];
    if (apply && this.status) apply(this, data);
  }

  /** Drop data older than an hour. */
  trim() {
    const before = this.now() - KEPT_SECS;
    for (const states of this.states.values()) states.trim(before);
    for (const counts of this.counts.values()) counts.trim(before);
    for (const record of this.switches.values()) {
      if ((record.ended ?? Infinity) < before) this.switches.delete(record.id);
    }
    for (const [key, run] of this.hooks) if (run.started < before) this.hooks.delete(key);
    for (const [id, request] of this.ended) if ((request.ended ?? 0) < before) this.ended.delete(id);
  }

  /** Parts of a time range in which llmux ran. @param {number} from @param {number} to @returns {{from: number, to: number}[]} */
  recorded(from, to) {
    return this.runs
      .map(({ started, ended }) => ({ from: Math.max(from, started), to: Math.min(to, ended ?? Infinity) }))
      .filter((part) => part.to > part.from);
  }

  /** @param {string} model @param {number} at @param {import("./types.js").ModelState} state @param {import("./types.js").ModelState} [left] */
  _pushState(model, at, state, left) {
    const run = this.runs.findLast(({ started }) => started <= at);
    this._statesOf(model).push(at, state, left, run?.started);
  }

  /** @param {string} model */
  _statesOf(model) {
    let states = this.states.get(model);
    if (!states) this.states.set(model, (states = new States()));
    return states;
  }

  /** @param {string} model */
  _countsOf(model) {
    let counts = this.counts.get(model);
    if (!counts) this.counts.set(model, (counts = new Counts()));
    return counts;
  }

  /** @param {import("./types.js").Counts} counts */
  _addCounts(counts) {
    for (const [name, [running, waiting]] of Object.entries(counts.models)) {
      this._countsOf(name).push(counts.at, running, waiting);
    }
  }

  /** @param {SwitchRecord} record */
  _addSwitch(record) {
    this.switches.set(record.id, record);
    dropOldest(this.switches, MOST_SWITCHES);
  }

  /** @param {HookRun} run */
  _addHook(run) {
    this.hooks.set(`${run.model}\n${run.hook}\n${run.started}`, { ...run, output: run.output.slice(-LONGEST_OUTPUT) });
    dropOldest(this.hooks, MOST_HOOKS);
  }
}

/** @param {Map<any, any>} map @param {number} most */
function dropOldest(map, most) {
  while (map.size > most) map.delete(map.keys().next().value);
}

/** Handlers of events, for a store that has a status. @type {Record<string, (store: Store, data: any) => void>} */
const EVENTS = {
  phase(store, change) {
    store._pushState(change.model, change.at, change.state, change.left);
    const model = store.model(change.model);
    if (model) {
      model.state = change.state;
      model.since = change.at;
      model.awake = change.state === "awake";
      const group = /** @type {Status} */ (store.status).groups[model.group];
      const awake = group.models.filter((name) => ["awake", "draining"].includes(store.model(name)?.state ?? ""));
      group.active_model = awake[0] ?? null;
      group.awake_models = awake;
      group.since = change.at;
    }
    store._mark("status");
    store._mark("timeline");
  },
  switch(store, record) {
    store._addSwitch(record);
    const group = /** @type {Status} */ (store.status).groups[record.group];
    if (group) {
      const others = switchesOf(group).filter(({ id }) => id !== record.id);
      group.switches = record.ended === null ? [...others, record] : others;
      group.switch = group.switches[0] ?? null;
    }
    store._mark("status");
    store._mark("timeline");
  },
  hook(store, run) {
    store._addHook(run);
    store._mark("timeline");
  },
  counts(store, counts) {
    store._addCounts(counts);
    for (const [name, [running, waiting]] of Object.entries(counts.models)) {
      const model = store.model(name);
      if (model) Object.assign(model, { in_flight: running, queued: waiting });
    }
    store._mark("status");
    store._mark("timeline");
  },
  outlook(store, outlook) {
    for (const [name, { wait_secs: wait, cost_secs: cost }] of Object.entries(outlook.models)) {
      const model = store.model(name);
      if (model) Object.assign(model, { eta_secs: wait, cost_secs: cost });
    }
    store._mark("status");
  },
  tokens(store, rates) {
    for (const [name, rate] of Object.entries(rates.models)) {
      const model = store.model(name);
      if (model) Object.assign(model, { tokens_per_sec: rate });
    }
    store._mark("status");
  },
  requests(store, changes) {
    for (const request of changes.changed) {
      if (!store.requests.has(request.id)) store.total += 1;
      store.requests.set(request.id, request);
    }
    for (const request of changes.ended) {
      if (store.requests.delete(request.id)) store.total -= 1;
      store.ended.set(request.id, request);
    }
    dropOldest(store.ended, MOST_ENDED);
    dropOldest(store.requests, MOST_REQUESTS);
    store._mark("requests");
  },
  mode(store, change) {
    /** @type {Status} */ (store.status).mode = change.mode;
    store._mark("status");
  },
  cordon(store, change) {
    /** @type {Status} */ (store.status).cordoned = change.cordoned;
    store._mark("status");
  },
  pin(store, change) {
    const group = /** @type {Status} */ (store.status).groups[change.group];
    if (group) Object.assign(group, { pinned: change.pinned, pins: change.pins });
    store._mark("status");
  },
  memory(store, change) {
    for (const [name, memory] of Object.entries(change.groups)) {
      const group = /** @type {Status} */ (store.status).groups[name];
      if (group) group.memory = memory;
    }
    store._mark("status");
  },
};
