/** Switch costs between all pairs of models, as a heat map. */

import { byId, h, nameOf } from "./dom.js";
import { duration } from "./format.js";
import { awakeOf } from "./switches.js";

/** @typedef {import("./state.js").Store} Store */

/** Shares of the accent colour in percent; up to here the text keeps a contrast of 4.5 in both themes. */
const COOLEST = 6;
const HOTTEST = 54;

const NOTHING = "idle"; // the API's name for the source of a switch that starts with no model awake

export class Costs {
  /** @param {Store} store */
  constructor(store) {
    this._store = store;
    this._shown = "";
    store.on("status", () => this.update());
  }

  update() {
    const status = this._store.status;
    if (!status) return;
    const groups = Object.entries(status.groups).map(([name, group]) => ({ name, models: group.models, awake: awakeOf(group) }));
    const key = JSON.stringify([status.estimated_costs, groups]);
    if (key === this._shown) return;
    this._shown = key;
    const most = Math.max(0.001, ...Object.values(status.estimated_costs).flatMap((row) => Object.values(row)));
    byId("costs-body").replaceChildren(...groups.map((group) => this._table(group, status.estimated_costs, most)));
  }

  /** @param {{name: string, models: string[], awake: string[]}} group @param {Record<string, Record<string, number>>} costs @param {number} most */
  _table({ name, models, awake }, costs, most) {
    const now = awake.length ? awake : [NOTHING];
    const cell = (/** @type {string} */ from, /** @type {string} */ to) => {
      const secs = costs[from]?.[to];
      const element = h("td.heat", { title: from === to ? null : `${from === NOTHING ? "nothing" : from} → ${to}` }, from === to ? "" : secs === undefined ? "–" : duration(secs));
      if (secs !== undefined) {
        element.style.setProperty("--heat", `${Math.round(COOLEST + (HOTTEST - COOLEST) * (secs / most))}%`);
      }
      return element;
    };
    return h("table.heat-map", {},
      h("caption", {}, name),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "from \\ to"), ...models.map((model) => h("th", { scope: "col" }, nameOf(model))))),
      h("tbody", {}, ...[NOTHING, ...models].map((from) =>
        h(`tr${now.includes(from) ? ".now" : ""}`, {}, h("th", { scope: "row" }, nameOf(from === NOTHING ? "nothing" : from)), ...models.map((to) => cell(from, to))))),
    );
  }
}
