/** Draws the lanes (states, requests in flight and waiting, switches), and finds what is at a position. */

import { clock, duration, shortName } from "./format.js";
import { STATES, fills, modelColour } from "./looks.js";
import { moved } from "./switches.js";
import { colour } from "./theme.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./view.js").View} View
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 * @typedef {{kind: "axis" | "switches" | "model", name: string, top: number, height: number}} Row
 * @typedef {{x: number, y: number, width: number, height: number}} Box
 */

export const AXIS_HEIGHT = 22;
export const SWITCHES_HEIGHT = 26;
export const SHARED_LEVELS = 2; // of switches that run at the same time
export const LANE_HEIGHT = 46;
const LANE_PADDING = 5;
const LEAST_SCALE = 4; // smallest number of requests that fills a lane's height
const TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800];
const PX_PER_TICK = 90;

/** One canvas with all lanes. */
export class Lanes {
  /** @param {HTMLCanvasElement} canvas @param {Store} store @param {View} view */
  constructor(canvas, store, view) {
    this.canvas = canvas;
    this._context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this._store = store;
    this._view = view;
    /** @type {Row[]} */
    this.rows = [];
    this.width = 0;
    this.height = 0;
    /** Requests that fill a lane. */
    this.scale = LEAST_SCALE;
    /** @type {number | null} */
    this.hoverTime = null;
    /** @type {number | null} */
    this.chosenSwitch = null;
    /** @type {RequestInfo | null} */
    this.chosenRequest = null;
    /** @type {string | null} */
    this.chosenLane = null;
    /** @type {{box: Box, record: SwitchRecord}[]} */
    this._switchBoxes = [];
    this._colours = /** @type {Record<string, string>} */ ({});
  }

  /** @param {Row[]} rows @param {number} width In CSS pixels. */
  resize(rows, width) {
    const last = rows.at(-1);
    this.rows = rows;
    this.width = width;
    this.height = last ? last.top + last.height : 0;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = `${this.height}px`;
    this._ratio = ratio;
    this.recolour();
  }

  /** Read the current colours. */
  recolour() {
    this._fills = fills(this._context, this._ratio ?? 1);
    for (const name of ["text", "muted", "line", "surface", "accent", "on-accent", "failed", "grid"]) this._colours[name] = colour(name);
    this._modelColours = this._store.models.map((_, index) => colour(modelColour(index)));
    this._font = `11px ${getComputedStyle(document.body).fontFamily}`;
  }

  /** @param {number} time @returns {number} */
  x(time) {
    return ((time - this._view.from) / this._view.span) * this.width;
  }

  /** @param {number} x @returns {number} */
  time(x) {
    return this._view.from + (x / this.width) * this._view.span;
  }

  draw() {
    const ink = this._context;
    ink.setTransform(this._ratio ?? 1, 0, 0, this._ratio ?? 1, 0, 0);
    ink.clearRect(0, 0, this.width, this.height);
    ink.font = this._font ?? "";
    ink.textBaseline = "middle";
    const now = this._store.now();
    // Read once: a view that follows the clock moves between two reads.
    this._from = this._view.from;
    this._to = this._view.to;
    this._drawAxis(ink);
    this._drawUnknown(ink, now);
    this._measure(now);
    this._drawChosen(ink, now);
    this._switchBoxes = [];
    const lanes = this.rows.filter((row) => row.kind === "model");
    lanes.forEach((row, index) => this._drawLane(ink, row, now, this._modelColours?.[index] ?? ""));
    for (const row of this.rows) if (row.kind === "switches") this._drawSwitches(ink, row, now);
    this._drawRequest(ink, now);
    this._drawLine(ink, now, this._colours.accent, []);
    if (this.hoverTime !== null) this._drawLine(ink, this.hoverTime, this._colours.muted, [3, 3]);
  }

  /** @param {number} x @param {number} y @returns {{row: Row | undefined, time: number, record: SwitchRecord | undefined}} */
  whatIsAt(x, y) {
    const inside = ({ box }) => x >= box.x && x < box.x + box.width && y >= box.y && y < box.y + box.height;
    return {
      row: this.rows.find((row) => y >= row.top && y < row.top + row.height),
      time: this.time(x),
      record: this._switchBoxes.findLast(inside)?.record ?? this._switchDrawnAt(x, y),
    };
  }

  /** The switch that a waking, draining or sleeping interval belongs to. @param {number} x @param {number} y */
  _switchDrawnAt(x, y) {
    const row = this.rows.find((one) => y >= one.top && y < one.top + one.height);
    if (row?.kind !== "model") return undefined;
    const time = this.time(x);
    const slack = (4 / this.width) * this._view.span;
    return [...this._store.switches.values()].findLast(
      (record) =>
        moved(record).includes(row.name) &&
        time >= record.started - slack && time <= (record.ended ?? Infinity) + slack,
    );
  }

  /** The number of requests that fills a lane's height: the visible maximum of all lanes. @param {number} now */
  _measure(now) {
    const parts = Math.max(1, Math.round(this.width / 2));
    let most = LEAST_SCALE;
    this._peaks = new Map();
    for (const row of this.rows) {
      const counts = row.kind === "model" && this._store.counts.get(row.name);
      if (!counts) continue;
      const running = counts.peaks("running", this._from, this._to, parts);
      const waiting = counts.peaks("waiting", this._from, this._to, parts);
      // The future is unknown.
      const known = Math.min(parts, Math.ceil(((now - this._from) / (this._to - this._from)) * parts));
      for (let part = 0; part < known; part += 1) most = Math.max(most, running[part] + waiting[part]);
      this._peaks.set(row.name, { running, waiting, known, parts });
    }
    this.scale = most;
  }

  /** @param {CanvasRenderingContext2D} ink */
  _drawAxis(ink) {
    const step = TICKS.find((secs) => (secs / (this._to - this._from)) * this.width >= PX_PER_TICK) ?? 1800;
    ink.fillStyle = this._colours.muted;
    ink.strokeStyle = this._colours.grid;
    ink.lineWidth = 1;
    ink.beginPath();
    const zone = new Date().getTimezoneOffset() * 60;
    for (let local = Math.ceil((this._from - zone) / step) * step; local + zone < this._to; local += step) {
      const x = Math.round(this.x(local + zone)) + 0.5;
      ink.moveTo(x, AXIS_HEIGHT - 4);
      ink.lineTo(x, this.height);
      const text = step < 60 ? clock(local + zone) : clock(local + zone).slice(0, 5);
      if (x > 20 && x < this.width - 20) ink.fillText(text, x - ink.measureText(text).width / 2, AXIS_HEIGHT / 2 - 1);
    }
    for (const row of this.rows.slice(1)) {
      ink.moveTo(0, row.top + 0.5);
      ink.lineTo(this.width, row.top + 0.5);
    }
    ink.stroke();
  }

  /** The times of which nothing is known, because llmux did not run. @param {CanvasRenderingContext2D} ink @param {number} now */
  _drawUnknown(ink, now) {
    const end = Math.min(this._to, now);
    let from = this._from;
    for (const part of [...this._store.recorded(this._from, end), { from: end, to: end }]) {
      const left = this.x(from);
      const width = this.x(part.from) - left;
      from = part.to;
      if (width < 1 || !this._store.runs.length) continue;
      ink.fillStyle = /** @type {any} */ (this._fills).unknown.fill;
      ink.fillRect(left, AXIS_HEIGHT, width, this.height - AXIS_HEIGHT);
      this._drawLabel(ink, "not recorded", left, left + width, (AXIS_HEIGHT + this.height) / 2);
    }
  }

  /** @param {CanvasRenderingContext2D} ink @param {Row} row @param {number} now @param {string} own */
  _drawLane(ink, row, now, own) {
    const top = row.top + LANE_PADDING;
    const height = row.height - 2 * LANE_PADDING;
    const floor = top + height;
    if (row.name === this.chosenLane) {
      ink.globalAlpha = 0.07;
      ink.fillStyle = this._colours.accent;
      ink.fillRect(0, row.top, this.width, row.height);
      ink.globalAlpha = 1;
    }
    const states = this._store.states.get(row.name);
    const stretches = this._store.recorded(this._from, Math.min(this._to, now)).flatMap(({ from, to }) => states?.within(from, to) ?? []);
    for (const { from, to, state } of stretches) {
      const x = this.x(from);
      const width = Math.max(1.5, this.x(to) - x);
      const { fill, edge } = /** @type {any} */ (this._fills)[state];
      ink.fillStyle = fill;
      if (state === "asleep") {
        ink.globalAlpha = 0.55;
        for (let dot = x - (x % 6); dot < x + width; dot += 6) if (dot >= x) ink.fillRect(dot, floor - 1.5, 2, 1.5);
        ink.globalAlpha = 1;
      } else if (state === "awake") {
        ink.globalAlpha = 0.16;
        ink.fillRect(x, top, width, height);
        ink.globalAlpha = 1;
        ink.fillRect(x, floor - 2, width, 2);
      } else {
        ink.fillRect(x, top, width, height);
        ink.fillStyle = edge;
        ink.fillRect(x, floor - 2, width, 2);
        ink.fillRect(x, top, width, 1);
      }
    }
    this._drawCounts(ink, row.name, top, height, own);
    for (const { from, to, state } of stretches) {
      if (state !== "asleep") this._drawLabel(ink, STATES[state].label, this.x(from), this.x(to), top + 8);
    }
  }

  /** Requests in flight as a solid area, with waiting ones as a framed area on top. */
  _drawCounts(/** @type {CanvasRenderingContext2D} */ ink, /** @type {string} */ name, /** @type {number} */ top, /** @type {number} */ height, /** @type {string} */ own) {
    const peaks = this._peaks?.get(name);
    if (!peaks) return;
    const { running, waiting, known, parts } = peaks;
    const step = this.width / parts;
    const floor = top + height;
    const unit = height / this.scale;
    const solid = new Path2D();
    const above = new Path2D();
    const frame = new Path2D();
    let level = NaN;
    for (let part = 0; part < known; part += 1) {
      const x = part * step;
      const run = running[part] * unit;
      const wait = waiting[part] * unit;
      if (run) solid.rect(x, floor - run, step + 0.3, run);
      if (wait) {
        above.rect(x, floor - run - wait, step + 0.3, wait);
        const next = floor - run - wait;
        if (Number.isNaN(level)) frame.moveTo(x, floor - run);
        frame.lineTo(x, next);
        frame.lineTo(x + step, next);
        level = next;
      } else if (!Number.isNaN(level)) {
        frame.lineTo(x, floor - run);
        level = NaN;
      }
    }
    ink.fillStyle = /** @type {any} */ (this._fills).awake.edge;
    ink.globalAlpha = 0.9;
    ink.fill(solid);
    ink.fillStyle = own;
    ink.globalAlpha = 0.3;
    ink.fill(above);
    ink.globalAlpha = 1;
    ink.strokeStyle = own;
    ink.lineWidth = 1.5;
    ink.stroke(frame);
  }

  /** A text on a background, if there is room. */
  _drawLabel(/** @type {CanvasRenderingContext2D} */ ink, /** @type {string} */ text, /** @type {number} */ from, /** @type {number} */ to, /** @type {number} */ y) {
    const left = Math.max(0, from);
    const width = ink.measureText(text).width;
    if (Math.min(this.width, to) - left < width + 12) return;
    ink.fillStyle = this._colours.surface;
    ink.globalAlpha = 0.82;
    ink.beginPath();
    ink.roundRect(left + 3, y - 7, width + 6, 14, 3);
    ink.fill();
    ink.globalAlpha = 1;
    ink.fillStyle = this._colours.text;
    ink.fillText(text, left + 6, y);
  }

  /** @param {CanvasRenderingContext2D} ink @param {Row} row @param {number} now */
  _drawSwitches(ink, row, now) {
    const levels = Math.max(1, Math.round(row.height / SWITCHES_HEIGHT));
    const height = row.height / levels;
    /** By level: the end of its last switch in pixels, that of its text, and that switch's time of end. */
    const rows = Array.from({ length: levels }, () => ({ free: -Infinity, until: -Infinity }));
    for (const record of this._store.switches.values()) {
      const end = record.ended ?? now;
      if (record.group !== row.name || end < this._from || record.started > this._to) continue;
      const level = rows.findIndex(({ until }) => until <= record.started);
      const number = level < 0 ? rows.indexOf(rows.reduce((one, other) => (other.until < one.until ? other : one))) : level;
      const here = rows[number];
      here.until = Math.max(here.until, end);
      const top = row.top + number * height;
      const left = Math.max(-4, this.x(record.started));
      const box = { x: left, y: top + 5, width: Math.max(5, this.x(end) - left), height: height - 9 };
      this._switchBoxes.push({ record, box: { ...box, x: box.x - 3, y: top, width: box.width + 6, height } });
      const failed = record.result === "failure";
      const chosen = record.id === this.chosenSwitch;
      ink.fillStyle = failed ? /** @type {any} */ (this._fills).failed.fill : this._colours.accent;
      const abandoned = record.result === "abandoned";
      ink.globalAlpha = abandoned && !chosen ? 0.3 : 1; // as text needs a contrast of 4.5 on it
      ink.beginPath();
      ink.roundRect(box.x, box.y, box.width, box.height, 4);
      ink.fill();
      ink.globalAlpha = 1;
      if (chosen) {
        ink.strokeStyle = this._colours.text;
        ink.lineWidth = 2;
        ink.stroke();
      }
      const text = `${failed ? "✕ " : abandoned ? "⤺ " : ""}→ ${shortName(record.to, 0)} ${duration(end - record.started)}`;
      const width = ink.measureText(text).width;
      if (box.width > width + 10) {
        ink.fillStyle = failed || (abandoned && !chosen) ? this._colours.text : this._colours["on-accent"];
        ink.fillText(text, Math.max(5, box.x + 6), box.y + box.height / 2 + 0.5);
        here.free = box.x + box.width;
      } else if (box.x > here.free + 4 && this._nextStart(record, row) - box.x - box.width > width + 14) {
        ink.fillStyle = failed ? this._colours.failed : this._colours.muted;
        ink.fillText(text, box.x + box.width + 5, box.y + box.height / 2 + 0.5);
        here.free = box.x + box.width + 5 + width;
      }
    }
  }

  /** The start of the group's next switch, in pixels. @param {SwitchRecord} record @param {Row} row */
  _nextStart(record, row) {
    const next = [...this._store.switches.values()].find((other) => other.group === row.name && other.started > record.started);
    return next ? this.x(next.started) : this.width;
  }

  /** The band of the chosen switch, over the lanes of its group. @param {CanvasRenderingContext2D} ink @param {number} now */
  _drawChosen(ink, now) {
    const record = this.chosenSwitch === null ? undefined : this._store.switches.get(this.chosenSwitch);
    const models = record && this._store.status?.groups[record.group]?.models;
    if (!record || !models) return;
    const rows = this.rows.filter((row) => (row.kind === "model" ? models.includes(row.name) : row.name === record.group));
    if (!rows.length) return;
    const left = this.x(record.started);
    const last = /** @type {Row} */ (rows.at(-1));
    ink.fillStyle = this._colours.accent;
    ink.globalAlpha = 0.1;
    ink.fillRect(left, rows[0].top, Math.max(2, this.x(record.ended ?? now) - left), last.top + last.height - rows[0].top);
    ink.globalAlpha = 1;
  }

  /** The wait of the chosen request, on the lane of its model. @param {CanvasRenderingContext2D} ink @param {number} now */
  _drawRequest(ink, now) {
    const request = this.chosenRequest;
    const row = request && this.rows.find((one) => one.kind === "model" && one.name === request.model);
    if (!row) return;
    const end = request.phase === "waiting" ? now : request.arrived + request.waited_secs;
    const left = this.x(request.arrived);
    const right = Math.max(left + 3, this.x(end));
    ink.strokeStyle = this._colours.text;
    ink.lineWidth = 2;
    ink.setLineDash([]);
    ink.beginPath();
    ink.roundRect(left, row.top + 2, right - left, row.height - 4, 3);
    ink.stroke();
    this._drawLabel(ink, `waited ${duration(end - request.arrived)}`, left, Math.max(right, left + 120), row.top + row.height - 12);
  }

  /** @param {CanvasRenderingContext2D} ink @param {number} time @param {string} stroke @param {number[]} dash */
  _drawLine(ink, time, stroke, dash) {
    const x = Math.round(this.x(time)) + 0.5;
    if (x < 0 || x > this.width) return;
    ink.strokeStyle = stroke;
    ink.lineWidth = 1;
    ink.setLineDash(dash);
    ink.beginPath();
    ink.moveTo(x, AXIS_HEIGHT - 4);
    ink.lineTo(x, this.height);
    ink.stroke();
    ink.setLineDash([]);
  }
}
