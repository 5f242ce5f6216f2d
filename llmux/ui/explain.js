/** Explains a request's wait: what its group was doing in each interval of it. */

import { evicted, sharesMemory, switchesOf } from "./switches.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").ModelState} ModelState
 * @typedef {{from: number, to: number, state: ModelState, model: string | null, why: string}} Part
 */

const LEAST_SHARE = 0.003; // of a wait; shorter intervals explain nothing

/** @param {RequestInfo} request @param {number} now @returns {number} When its wait was over, or is so far. */
export const waitEnd = (request, now) => (request.phase === "waiting" ? now : request.arrived + request.waited_secs);

/**
 * How much longer requests for a model are expected to wait.
 * @param {Store} store @param {string} name @param {number} now
 * @returns {number | null} In seconds; null: unknown.
 */
export function expectedWait(store, name, now) {
  const model = store.model(name);
  const group = model && store.status?.groups[model.group];
  const running = group && switchesOf(group).find((record) => record.to === name);
  // While a switch to it runs, what is left of that; the status is up to ten seconds old.
  if (running && running.expected_secs !== null) return Math.max(0, running.expected_secs - (now - running.started));
  return model?.eta_secs ?? null;
}

/**
 * @param {Store} store @param {RequestInfo} request
 * @returns {{parts: Part[], switches: SwitchRecord[]}} Parts in order of time, and the switches in them.
 */
export function explain(store, request) {
  const from = request.arrived;
  const to = waitEnd(request, store.now());
  const group = store.model(request.model)?.group;
  const models = (group && store.status?.groups[group]?.models) || [];
  const edges = new Set([from, to]);
  for (const name of models) {
    for (const stretch of store.states.get(name)?.within(from, to) ?? []) edges.add(stretch.from);
  }
  const times = [...edges].filter((time) => time >= from && time <= to).sort((a, b) => a - b);
  /** @type {Part[]} */
  const parts = [];
  for (let i = 0; i + 1 < times.length; i += 1) {
    const part = { from: times[i], to: times[i + 1], ...cause(store, group ?? "", models, request.model, (times[i] + times[i + 1]) / 2) };
    const last = parts.at(-1);
    if (last && last.state === part.state && last.model === part.model && last.why === part.why) last.to = part.to;
    else parts.push(part);
  }
  const switches = [...store.switches.values()].filter(
    (record) => record.group === group && record.started < to && (record.ended ?? Infinity) > from,
  );
  return { parts: parts.filter((part) => part.to - part.from > LEAST_SHARE * (to - from)), switches };
}

/** The reason why a request for a model waited at a given time. @param {Store} store @param {string} group @param {string[]} models @param {string} own @param {number} time */
function cause(store, group, models, own, time) {
  const states = models.map((name) => ({ name, state: store.states.get(name)?.at(time)?.state }));
  const find = (/** @type {ModelState} */ state) => states.find((one) => one.state === state)?.name;
  const pick = (/** @type {ModelState} */ state, /** @type {string | null} */ model, /** @type {string} */ why) => ({ state, model, why });
  const mine = states.find((one) => one.name === own)?.state;
  if (mine === "waking") return pick("waking", own, `${own} was waking`);
  if (mine === "awake") {
    const slots = store.model(own)?.max_in_flight;
    return pick("awake", own, slots ? `${own} was awake, but its ${slots} slots were taken` : `${own} was awake, and admitted the waiting requests`);
  }
  if (sharesMemory(store, group)) return causeBeside(store, group, own, time, states);
  const draining = find("draining");
  if (draining) return pick("draining", draining, `${draining} was draining: its last requests had to end`);
  const sleeping = find("sleeping");
  if (sleeping) return pick("sleeping", sleeping, `${sleeping} was put to sleep`);
  const waking = find("waking");
  if (waking) return pick("waking", waking, `${waking} was waking: its turn came first`);
  const awake = find("awake");
  if (awake) return pick("awake", awake, `${awake} was serving: the policy stayed`);
  if (mine === "failed") return pick("failed", own, `${own} had failed to wake; its retry was not due`);
  return pick("asleep", null, "nothing was awake");
}

/**
 * The same where several models may be awake, and the model is neither waking nor awake.
 * @param {Store} store @param {string} group @param {string} own @param {number} time
 * @param {{name: string, state: ModelState | undefined}[]} states
 * @returns {{state: ModelState, model: string | null, why: string}}
 */
function causeBeside(store, group, own, time, states) {
  const running = [...store.switches.values()].filter((record) => record.group === group && record.started <= time && time < (record.ended ?? Infinity));
  const mine = running.find((record) => record.to === own);
  const leaving = states.filter(({ name }) => mine && evicted(mine).includes(name));
  const draining = leaving.find(({ state }) => state === "draining");
  if (draining) return { state: "draining", model: draining.name, why: `${draining.name} was draining: its last requests had to end` };
  const sleeping = leaving.find(({ state }) => state === "sleeping");
  if (sleeping) return { state: "sleeping", model: sleeping.name, why: `${sleeping.name} was put to sleep` };
  const other = running.find((record) => record !== mine);
  if (mine) return { state: "asleep", model: null, why: other ? `its switch waited for memory, or for the hooks of the switch to ${other.to}` : `its switch was about to wake ${own}` };
  const awake = states.filter(({ state }) => state === "awake").map(({ name }) => name);
  if (awake.length) return { state: "awake", model: awake[0], why: `${awake.join(", ")} ${awake.length > 1 ? "were" : "was"} serving: the policy stayed` };
  if (other) return { state: "waking", model: other.to, why: `the switch to ${other.to} came first` };
  if (states.find(({ name }) => name === own)?.state === "failed") return { state: "failed", model: own, why: `${own} had failed to wake; its retry was not due` };
  return { state: "asleep", model: null, why: "nothing was awake" };
}
