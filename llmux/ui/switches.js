/** What a group has several of where its models share memory: models awake, switches and pins. */

/**
 * @typedef {import("./types.js").GroupStatus} GroupStatus
 * @typedef {import("./types.js").ModelStatus} ModelStatus
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").Pin} Pin
 */

/** The models that a switch puts to sleep. @param {SwitchRecord} record @returns {string[]} */
export const evicted = (record) => (record.evicts?.length ? record.evicts : record.from === null ? [] : [record.from]);

/** The models that a switch moves. @param {SwitchRecord} record @returns {string[]} */
export const moved = (record) => [...evicted(record), record.to];

/** @param {SwitchRecord} record @returns {string} As `a + b → c`. */
export const change = (record) => `${evicted(record).join(" + ") || "nothing"} → ${record.to}`;

/** The models that are awake. @param {GroupStatus} group @returns {string[]} */
export const awakeOf = (group) => group.awake_models ?? (group.active_model === null ? [] : [group.active_model]);

/** The running switches. @param {GroupStatus} group @returns {SwitchRecord[]} */
export const switchesOf = (group) => group.switches ?? (group.switch ? [group.switch] : []);

/** The pins in force. @param {GroupStatus} group @returns {Pin[]} */
export const pinsOf = (group) => group.pins ?? (group.pinned ? [group.pinned] : []);

/** True if several models of the group may be awake. @param {import("./state.js").Store} store @param {string} name Of the group. */
export function sharesMemory(store, name) {
  const group = store.status?.groups[name];
  return (group?.models ?? []).some((model) => (store.model(model)?.needs_asleep ?? null) !== null);
}
