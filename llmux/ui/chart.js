/** A chart of stacked areas, one for each model; drawn by uPlot. */

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { modelColour } from "./looks.js";
import { colour } from "./theme.js";

/** @typedef {import("./state.js").Store} Store */
/** @typedef {import("./view.js").View} View */

const PX_PER_PART = 2;

/** Waiting or running requests of all models, stacked. */
export class StackedChart {
  /**
   * @param {HTMLElement} parent @param {Store} store @param {View} view
   * @param {"running" | "waiting"} which
   * @param {(time: number | null) => void} onHover
   */
  constructor(parent, store, view, which, onHover) {
    this._parent = parent;
    this._store = store;
    this._view = view;
    this._which = which;
    this._onHover = onHover;
    this._plot = /** @type {any} */ (null);
    this._quiet = false;
  }

  /** Rebuild after a change of models, colours or size. @param {number} gutter @param {number} width @param {number} height */
  rebuild(gutter, width, height) {
    this._plot?.destroy();
    this._width = width;
    const models = this._store.models;
    const muted = colour("muted");
    const grid = { stroke: colour("grid"), width: 1 };
    const axis = { stroke: muted, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const fill = (/** @type {number} */ index) => `${colour(modelColour(index))}b0`;
    const series = models.map((name, index) => ({
      label: name,
      fill: index === 0 ? fill(0) : undefined,
      stroke: colour(modelColour(index)),
      width: 1,
      points: { show: false },
      paths: uPlot.paths.stepped({ align: 1 }),
    }));
    const options = {
      width: gutter + width,
      height,
      padding: [6, 0, 4, 0],
      legend: { show: false },
      // Cumulative sums: all models first, the first model alone last.
      series: [{}, ...series.reverse()],
      // A model's own area lies between its sum and the one below.
      bands: models.slice(1).map((_, below) => ({
        series: [models.length - below - 1, models.length - below],
        fill: fill(below + 1),
      })),
      scales: { x: { time: true, auto: false }, y: { range: (/** @type {any} */ _u, /** @type {number} */ _low, /** @type {number} */ high) => [0, Math.max(4, Math.ceil(high * 1.1))] } },
      axes: [{ show: false }, { ...axis, size: gutter, space: 24, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }],
      cursor: { drag: { setScale: false, x: false, y: false }, y: false, points: { show: false } },
      hooks: { setCursor: [(/** @type {any} */ plot) => this._hovered(plot)] },
    };
    this._plot = new uPlot(options, [[], ...models.map(() => [])], this._parent);
  }

  /** @param {any} plot */
  _hovered(plot) {
    if (!this._quiet) this._onHover(plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null);
  }

  /** Show the cursor at a time hovered elsewhere. @param {number | null} time */
  hover(time) {
    if (!this._plot) return;
    this._quiet = true;
    this._plot.setCursor({ left: time === null ? -10 : this._plot.valToPos(time, "x"), top: 0 }, true);
    this._quiet = false;
  }

  draw() {
    if (!this._plot) return;
    const { from, to } = this._view;
    const parts = Math.max(2, Math.round((this._width ?? 0) / PX_PER_PART));
    const step = (to - from) / parts;
    const known = Math.max(0, Math.min(parts, Math.ceil((this._store.now() - from) / step)));
    const times = Float64Array.from({ length: parts }, (_, part) => from + part * step);
    const isKnown = new Uint8Array(parts);
    for (const { from: begin, to: end } of this._store.recorded(from, to)) {
      isKnown.fill(1, Math.max(0, Math.floor((begin - from) / step)), Math.min(known, Math.ceil((end - from) / step)));
    }
    const sums = [];
    let below = new Float64Array(parts);
    for (const model of this._store.models) {
      const peaks = this._store.counts.get(model)?.peaks(this._which, from, to, parts) ?? new Float64Array(parts);
      const sum = Array.from(peaks, (peak, part) => (isKnown[part] ? peak + below[part] : null));
      below = Float64Array.from(sum, (value) => value ?? 0);
      sums.push(sum);
    }
    this._plot.batch(() => {
      this._plot.setData([times, ...sums.reverse()], false);
      this._plot.setScale("x", { min: from, max: to });
      this._plot.setScale("y", { min: 0, max: below.reduce((most, value) => Math.max(most, value), 0) });
    });
  }
}
