/** The timeline: lanes and charts over one time range, with panning and zooming. */

import { StackedChart } from "./chart.js";
import { byId, h, nameOf, patchList, say } from "./dom.js";
import { clock, duration, many } from "./format.js";
import { AXIS_HEIGHT, LANE_HEIGHT, Lanes, SHARED_LEVELS, SWITCHES_HEIGHT } from "./lanes.js";
import { STATES, modelColour } from "./looks.js";
import { change, moved, sharesMemory } from "./switches.js";
import { onTheme } from "./theme.js";
import { View } from "./view.js";

/**
 * @typedef {import("./state.js").Store} Store
 * @typedef {import("./types.js").SwitchRecord} SwitchRecord
 * @typedef {import("./types.js").RequestInfo} RequestInfo
 * @typedef {import("./lanes.js").Row} Row
 */

const SPANS = [60, 300, 900, 1800, 3600];
const FIRST_SPAN = 300;
const CHART_HEIGHT = 92;
const GUTTER = 148;
const NARROW_GUTTER = 84;
const NARROW = 640;
const ZOOM_STEP = 1.6;
const CLICK_PX = 5; // a pointer that moves further than this drags
const FRESHEST_MS = 200; // shortest time between two frames while following

export class Timeline {
  /** @param {Store} store @param {(record: SwitchRecord) => void} onSwitch Called when one is chosen. */
  constructor(store, onSwitch) {
    this._store = store;
    this._onSwitch = onSwitch;
    this.view = new View(() => store.now(), FIRST_SPAN);
    this.view.onChange = () => this._moved();
    this._build();
    this._lanes = new Lanes(this._canvas, store, this.view);
    const hover = (/** @type {number | null} */ time) => this._hover(time);
    this._charts = [
      new StackedChart(this._waiting, store, this.view, "waiting", hover),
      new StackedChart(this._running, store, this.view, "running", hover),
    ];
    this._layout = "";
    this._frame = 0;
    this._listen();
    this._moved();
    store.on("timeline", () => this.draw());
    store.on("status", () => this._relayout());
    onTheme(() => this._relayout(true));
    new ResizeObserver(() => this._relayout()).observe(this._box);
    this._tick();
  }

  _build() {
    this._body = byId("timeline-body");
    this._labels = h("div.lane-labels", { role: "listbox", "aria-label": "Models", tabindex: "0" });
    this._canvas = h("canvas.lanes", { role: "img", tabindex: "0", "aria-label": "States of the models over time", "aria-describedby": "timeline-hint" });
    this._waiting = h("div.chart", { role: "img", "aria-label": "Waiting requests over time" });
    this._running = h("div.chart", { role: "img", "aria-label": "Requests in flight over time" });
    this._scale = h("span.lane-scale");
    this._box = h("div.lanes-box", {}, this._scale, this._labels, this._canvas);
    this._body.append(
      this._box,
      h("h3.chart-title", {}, "Waiting"), this._waiting,
      h("h3.chart-title", {}, "In flight"), this._running,
    );
    byId("legend").append(
      ...Object.entries(STATES).map(([state, { label }]) => h("li", {}, h(`span.swatch.${state}`), label)),
      h("li", {}, h("span.swatch.waits"), "waiting requests"),
    );
    const span = byId("span");
    span.append(...SPANS.map((secs) => h("option", { value: secs }, secs < 3600 ? `${secs / 60} min` : "1 hour")), h("option", { value: "", hidden: true }, "…"));
    span.addEventListener("change", () => this.view.zoom(Number(span.value) / this.view.span));
    byId("zoom-in").addEventListener("click", () => this._zoomMiddle(1 / ZOOM_STEP));
    byId("zoom-out").addEventListener("click", () => this._zoomMiddle(ZOOM_STEP));
    byId("live").addEventListener("click", () => this.view.live());
  }

  /** @param {number} factor */
  _zoomMiddle(factor) {
    this.view.zoom(factor, this.view.follows ? undefined : this.view.to - this.view.span / 2);
  }

  /** Rebuild rows, sizes and colours if they changed. */
  _relayout(force = false) {
    const status = this._store.status;
    const outer = this._box.clientWidth;
    if (!status || !outer) return;
    this._narrow = outer < NARROW;
    const gutter = this._narrow ? NARROW_GUTTER : GUTTER;
    const key = JSON.stringify([outer, devicePixelRatio, Object.entries(status.groups).map(([name, { models }]) => [name, models, sharesMemory(this._store, name)])]);
    if (key !== this._layout || force) {
      this._layout = key;
      /** @type {Row[]} */
      const rows = [{ kind: "axis", name: "", top: 0, height: AXIS_HEIGHT }];
      const add = (/** @type {Row["kind"]} */ kind, /** @type {string} */ name, /** @type {number} */ height) => {
        const last = /** @type {Row} */ (rows.at(-1));
        rows.push({ kind, name, top: last.top + last.height, height });
      };
      for (const [group, { models }] of Object.entries(status.groups)) {
        add("switches", group, SWITCHES_HEIGHT * (sharesMemory(this._store, group) ? SHARED_LEVELS : 1));
        for (const model of models) add("model", model, LANE_HEIGHT);
      }
      this._body.style.setProperty("--gutter", `${gutter}px`);
      this._lanes.resize(rows, outer - gutter);
      for (const chart of this._charts) chart.rebuild(gutter, outer - gutter, CHART_HEIGHT);
      this.draw();
    }
    this._patchLabels();
  }

  _patchLabels() {
    const models = this._store.models;
    patchList(
      this._labels,
      this._lanes.rows.slice(1),
      (row) => `${row.kind} ${row.name}`,
      (row) =>
        row.kind === "switches"
          ? h("div.lane-group", { role: "presentation", title: row.name }, `${row.name} · switches`)
          : h("div.lane-label", { role: "option", id: `lane-${models.indexOf(row.name)}`, title: row.name, onclick: () => this._chooseLane(row.name) },
              h("span.lane-name", {}, h("i.dot"), nameOf(row.name)), h("span.lane-now")),
      (element, row) => {
        element.style.height = `${row.height}px`;
        if (row.kind !== "model") return;
        const model = this._store.model(row.name);
        if (!model) return;
        element.style.setProperty("--own", `var(--${modelColour(models.indexOf(row.name))})`);
        element.setAttribute("aria-selected", String(row.name === this._lanes.chosenLane));
        const counts = [model.in_flight && `${model.in_flight} in flight`, model.queued && `${model.queued} waiting`].filter(Boolean);
        const parts = this._narrow && counts.length ? counts : [STATES[model.state].label, ...counts];
        say(element.querySelector(".lane-now"), parts.join(" · "));
      },
    );
  }

  /** @param {string | null} name */
  _chooseLane(name) {
    this._lanes.chosenLane = name;
    const index = name === null ? -1 : this._store.models.indexOf(name);
    if (index >= 0) this._labels.setAttribute("aria-activedescendant", `lane-${index}`);
    this._patchLabels();
    this.draw();
  }

  /** Draw at the next frame. */
  draw() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      this._lanes.draw();
      for (const chart of this._charts) chart.draw();
      say(this._scale, `full height: ${this._lanes.scale}`);
    });
  }

  /** While following, redraw each time the view has moved by a pixel. */
  _tick() {
    if (this.view.follows && this._store.status) this.draw();
    const pixelMs = (this.view.span / Math.max(1, this._lanes.width)) * 1000;
    setTimeout(() => this._tick(), Math.max(FRESHEST_MS, pixelMs));
  }

  _moved() {
    byId("live").setAttribute("aria-pressed", String(this.view.follows));
    const span = byId("span");
    const known = SPANS.find((secs) => Math.abs(secs - this.view.span) < 0.5);
    span.lastElementChild.textContent = duration(this.view.span);
    span.value = known ?? "";
    this.draw();
  }

  /** Highlight a switch. @param {SwitchRecord | null} record */
  chooseSwitch(record) {
    this._lanes.chosenSwitch = record?.id ?? null;
    if (record) this.view.show(record.started, record.ended ?? this._store.now());
    this.draw();
  }

  /** Highlight the wait of a request. @param {RequestInfo | null} request */
  chooseRequest(request) {
    this._lanes.chosenRequest = request;
    if (request) {
      const end = request.phase === "waiting" ? this._store.now() : request.arrived + request.waited_secs;
      this.view.show(request.arrived, end);
    }
    this.draw();
  }

  /** Scroll to the lanes unless they are visible. */
  comeIntoSight() {
    const { top, bottom } = this._box.getBoundingClientRect();
    if (top > innerHeight * 0.6 || bottom < innerHeight * 0.3) byId("timeline").scrollIntoView({ block: "start" });
  }

  /** @param {number | null} time */
  _hover(time) {
    if (time === this._lanes.hoverTime) return;
    this._lanes.hoverTime = time;
    this.draw();
  }

  _listen() {
    const canvas = this._canvas;
    canvas.addEventListener("wheel", (/** @type {WheelEvent} */ event) => this._wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => this._down(event));
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (/** @type {PointerEvent} */ event) => this._up(event));
    }
    canvas.addEventListener("pointerleave", () => {
      byId("tooltip").hidden = true;
      this._hover(null);
      for (const chart of this._charts) chart.hover(null);
    });
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this._key(event));
    this._labels.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this._key(event));
    /** Pointers that are down, by id. @type {Map<number, {x: number, y: number}>} */
    this._pointers = new Map();
    this._dragged = 0;
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (sideways) {
      event.preventDefault();
      this.view.pan(((event.deltaX || event.deltaY) / this._lanes.width) * this.view.span);
    } else if (event.ctrlKey || event.metaKey || document.activeElement === this._canvas) {
      // Otherwise the wheel scrolls the page, as usual.
      event.preventDefault();
      const anchor = this.view.follows ? undefined : this._lanes.time(event.offsetX);
      this.view.zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) / 150), anchor);
    }
  }

  /** @param {PointerEvent} event */
  _down(event) {
    this._canvas.setPointerCapture(event.pointerId);
    this._pointers?.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this._dragged = 0;
  }

  /** @param {PointerEvent} event */
  _move(event) {
    const before = this._pointers?.get(event.pointerId);
    if (!before) {
      this._point(event);
      return;
    }
    const here = { x: event.offsetX, y: event.offsetY };
    const others = [...(this._pointers ?? [])].filter(([id]) => id !== event.pointerId);
    this._pointers?.set(event.pointerId, here);
    if (others.length === 1) {
      const other = others[0][1];
      const factor = Math.max(20, Math.abs(before.x - other.x)) / Math.max(20, Math.abs(here.x - other.x));
      this._dragged = Infinity;
      this.view.zoom(factor, this._lanes.time((here.x + other.x) / 2));
      return;
    }
    this._dragged += Math.abs(here.x - before.x);
    if (this._dragged > CLICK_PX) {
      byId("tooltip").hidden = true;
      this._canvas.classList.add("dragged");
      this.view.pan(((before.x - here.x) / this._lanes.width) * this.view.span);
    }
  }

  /** @param {PointerEvent} event */
  _up(event) {
    const was = this._pointers?.delete(event.pointerId);
    this._canvas.classList.remove("dragged");
    if (!was || event.type !== "pointerup" || this._dragged > CLICK_PX) return;
    const { record, row } = this._lanes.whatIsAt(event.offsetX, event.offsetY);
    if (record) this._onSwitch(record);
    else if (row?.kind === "model") this._chooseLane(row.name);
  }

  /** Show a tooltip for what is below the pointer. @param {PointerEvent} event */
  _point(event) {
    const { row, time, record } = this._lanes.whatIsAt(event.offsetX, event.offsetY);
    this._hover(time);
    for (const chart of this._charts) chart.hover(time);
    this._canvas.classList.toggle("over-switch", Boolean(record));
    const tooltip = byId("tooltip");
    const lines = this._describe(row, time, record);
    tooltip.hidden = lines.length === 0;
    if (tooltip.hidden) return;
    tooltip.replaceChildren(...lines.map((line, index) => h(index ? "div" : "strong", {}, line)));
    const { innerWidth } = window;
    const width = tooltip.offsetWidth;
    tooltip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tooltip.style.top = `${event.clientY + 18}px`;
  }

  /** @param {Row | undefined} row @param {number} time @param {SwitchRecord | undefined} record @returns {string[]} */
  _describe(row, time, record) {
    const now = this._store.now();
    const lines = [];
    if (row?.kind === "model" && time <= now) {
      const stretch = this._store.states.get(row.name)?.at(time);
      const counts = this._store.counts.get(row.name)?.valueAt(time);
      lines.push(`${row.name} · ${clock(time, true)}`);
      if (stretch) {
        const since = stretch.from === -Infinity ? "" : ` for ${duration(Math.min(stretch.to, now) - stretch.from)}`;
        lines.push(`${STATES[stretch.state].label}${since}`);
      }
      if (counts) lines.push(`${counts.running} in flight, ${counts.waiting} waiting`);
    }
    if (record) {
      const took = duration((record.ended ?? now) - record.started);
      lines.push(`Switch ${change(record)}, ${record.result ?? "running"}, ${took}`);
      if (record.reason) lines.push(record.reason);
      if (record.waiting) lines.push(`${many(record.waiting, "request")} waited for it`);
    }
    return lines;
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const step = this.view.span * (event.shiftKey ? 0.5 : 0.1);
    const keys = /** @type {Record<string, () => void>} */ ({
      ArrowLeft: () => this.view.pan(-step),
      ArrowRight: () => this.view.pan(step),
      ArrowUp: () => this._nextLane(-1),
      ArrowDown: () => this._nextLane(1),
      "+": () => this._zoomMiddle(1 / ZOOM_STEP),
      "=": () => this._zoomMiddle(1 / ZOOM_STEP),
      "-": () => this._zoomMiddle(ZOOM_STEP),
      Home: () => this.view.oldest(),
      End: () => this.view.live(),
      "[": () => this._nextSwitch(-1),
      "]": () => this._nextSwitch(1),
      Enter: () => this._openChosen(),
    });
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** @param {number} step */
  _nextLane(step) {
    const models = this._store.models;
    const at = models.indexOf(this._lanes.chosenLane ?? "");
    this._chooseLane(models[Math.max(0, Math.min(models.length - 1, at < 0 ? 0 : at + step))] ?? null);
  }

  /** Select the switch before or after the current one, within the selected lane if there is one. @param {number} step */
  _nextSwitch(step) {
    const lane = this._lanes.chosenLane;
    const records = [...this._store.switches.values()].filter((record) => !lane || moved(record).includes(lane));
    const at = records.findIndex((record) => record.id === this._lanes.chosenSwitch);
    const next = records[at < 0 ? records.length - 1 : Math.max(0, Math.min(records.length - 1, at + step))];
    if (!next) return;
    this.chooseSwitch(next);
    say(byId("announce"), `Switch to ${next.to} at ${clock(next.started)}, ${next.result ?? "running"}. Enter opens it.`);
  }

  _openChosen() {
    const record = this._store.switches.get(this._lanes.chosenSwitch ?? NaN);
    if (record) this._onSwitch(record);
  }
}
