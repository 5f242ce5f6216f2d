/** The memory that a group's models share: a bar for each resource, with who holds what and who is promised what. */

import { h, patchList, say } from "./dom.js";
import { binary } from "./format.js";
import { modelColour } from "./looks.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").ResourceMemory} ResourceMemory
 * @typedef {import("./types.js").Holding} Holding
 * @typedef {{key: string, model: string, bytes: number, how: Holding | "promised", text: string}} Part
 */

/** In the order of a bar: what will be free soon is beside what is free. @type {Record<Holding, string>} */
const HOLDINGS = { awake: "", waking: "waking", asleep: "asleep", falling: "falling asleep" };

/** @param {Element} parent @param {ResourceMemory[]} memory @param {Store} store */
export function patchMemory(parent, memory, store) {
  /** @type {any} */ (parent).hidden = !memory.length;
  const models = store.models;
  patchList(parent, memory, ({ resource }) => resource, ({ resource }) => make(resource), (row, one) => patch(row, one, models));
}

/** @param {string} resource */
function make(resource) {
  const row = h("div.memory-row");
  const part = (/** @type {string} */ key, /** @type {any} */ element) => (row[key] = element);
  row.append(
    h("div.memory-head", {}, h("strong", {}, resource), part("free", h("span.small-text"))),
    part("bar", h("div.memory-bar", { role: "img" })),
    part("promised", h("div.memory-bar.promises", { role: "img" })),
    part("list", h("ul.memory-list.small-text", { "aria-label": `Who holds ${resource}` })),
  );
  return row;
}

/** @param {any} row @param {ResourceMemory} memory @param {string[]} models */
function patch(row, memory, models) {
  const held = heldParts(memory);
  const promised = promisedParts(memory);
  const { resource, amount, free } = memory;
  // More is held than there is after a reload: then all of it is the bar.
  const whole = Math.max(1, amount, amount - free);
  say(row.free, free < 0 ? `${binary(-free)} more in use than the ${binary(amount)} there are` : `${binary(free)} of ${binary(amount)} free`);
  row.free.classList.toggle("error-text", free < 0);
  const said = (/** @type {Part[]} */ parts) => parts.map(({ model, text }) => `${model} ${text}`).join(", ");
  row.bar.setAttribute("aria-label", `${resource}: ${said(held) || "held by no model"}; ${row.free.textContent}`);
  fill(row.bar, held, whole, models);
  row.promised.hidden = !promised.length;
  row.promised.setAttribute("aria-label", `${resource}: ${said(promised)}`);
  fill(row.promised, promised, whole, models);
  patchList(row.list, [...held, ...promised], ({ key }) => key, ({ model, how }) => makeItem(model, how), (item, part) => {
    colourBy(item, part.model, models);
    say(item.text, part.text);
  });
}

/** @param {ResourceMemory} memory @returns {Part[]} */
function heldParts(memory) {
  const order = Object.keys(HOLDINGS);
  return memory.held
    .map(({ model, bytes, as }) => ({ key: `${as} ${model}`, model, bytes, how: as, text: [binary(bytes), HOLDINGS[as]].filter(Boolean).join(", ") }))
    .sort((one, other) => order.indexOf(one.how) - order.indexOf(other.how));
}

/** @param {ResourceMemory} memory @returns {Part[]} */
function promisedParts(memory) {
  return memory.promised.map(({ model, bytes, evicts }) => ({
    key: `promised ${model}`, model, bytes, how: "promised",
    text: `${binary(bytes)}, promised${evicts.length ? ` once ${evicts.join(" and ")} ${evicts.length > 1 ? "sleep" : "sleeps"}` : ""}`,
  }));
}

/** @param {Element} bar @param {Part[]} parts @param {number} whole @param {string[]} models */
function fill(bar, parts, whole, models) {
  patchList(bar, parts, ({ key }) => key, ({ model, how }) => h(`span.memory-part.${how}`, {}, h("span", {}, model)), (element, part) => {
    element.style.width = `${(100 * part.bytes) / whole}%`;
    element.setAttribute("title", `${part.model}: ${part.text}`);
    colourBy(element, part.model, models);
  });
}

/** @param {string} model @param {Part["how"]} how */
function makeItem(model, how) {
  const item = h("li", {}, h(`span.memory-part.${how}`), h("span.model-name", {}, model), " ");
  item.append((item.text = h("span")));
  return item;
}

/** @param {any} element @param {string} model @param {string[]} models */
const colourBy = (element, model, models) => element.style.setProperty("--own", `var(--${modelColour(Math.max(0, models.indexOf(model)))})`);
