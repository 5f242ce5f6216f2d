/** Explains a request's wait: what its group was doing in each interval of it. */

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
  const running = model && store.status?.groups[model.group]?.switch;
  // While a switch to it runs, what is left of that; the status is up to ten seconds old.
  if (running && running.to === name && running.expected_secs !== null) return Math.max(0, running.expected_secs - (now - running.started));
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
    const part = { from: times[i], to: times[i + 1], ...cause(store, models, request.model, (times[i] + times[i + 1]) / 2) };
    const last = parts.at(-1);
    if (last && last.state === part.state && last.model === part.model && last.why === part.why) last.to = part.to;
    else parts.push(part);
  }
  const switches = [...store.switches.values()].filter(
    (record) => record.group === group && record.started < to && (record.ended ?? Infinity) > from,
  );
  return { parts: parts.filter((part) => part.to - part.from > LEAST_SHARE * (to - from)), switches };
}

/** The reason why a request for a model waited at a given time. @param {Store} store @param {string[]} models @param {string} own @param {number} time */
function cause(store, models, own, time) {
  const states = models.map((name) => ({ name, state: store.states.get(name)?.at(time)?.state }));
  const find = (/** @type {ModelState} */ state) => states.find((one) => one.state === state)?.name;
  const pick = (/** @type {ModelState} */ state, /** @type {string | null} */ model, /** @type {string} */ why) => ({ state, model, why });
  const mine = states.find((one) => one.name === own)?.state;
  if (mine === "waking") return pick("waking", own, `${own} was waking`);
  if (mine === "awake") {
    const slots = store.model(own)?.max_in_flight;
    return pick("awake", own, slots ? `${own} was awake, but its ${slots} slots were taken` : `${own} was awake, and admitted the waiting requests`);
  }
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
