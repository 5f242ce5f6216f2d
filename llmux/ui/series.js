/** Step functions of time: counts and states. */

const CAPACITY = 16384;

/** Requests in flight and waiting for one model. Bounded: when full, the oldest quarter is dropped. */
export class Counts {
  constructor() {
    this.length = 0;
    this._room(256);
  }

  /** @param {number} capacity */
  _room(capacity) {
    const old = /** @type {any} */ (this);
    const copy = (/** @type {any} */ from, /** @type {any} */ to) => (from && to.set(from.subarray(0, this.length)), to);
    this.at = copy(old.at, new Float64Array(capacity));
    this.running = copy(old.running, new Uint32Array(capacity));
    this.waiting = copy(old.waiting, new Uint32Array(capacity));
  }

  /** @param {number} at @param {number} running @param {number} waiting */
  push(at, running, waiting) {
    const last = this.length - 1;
    if (last >= 0) {
      if (at < this.at[last]) return; // already known: events may repeat history
      if (this.running[last] === running && this.waiting[last] === waiting) return;
    }
    if (this.length === this.at.length) {
      if (this.length < CAPACITY) this._room(this.length * 2);
      else this.drop(CAPACITY / 4);
    }
    this.at[this.length] = at;
    this.running[this.length] = running;
    this.waiting[this.length] = waiting;
    this.length += 1;
  }

  /** Drop the oldest entries. @param {number} count */
  drop(count) {
    this.at.copyWithin(0, count, this.length);
    this.running.copyWithin(0, count, this.length);
    this.waiting.copyWithin(0, count, this.length);
    this.length -= count;
  }

  /** Drop entries that ended before a time. @param {number} time */
  trim(time) {
    const first = this.indexAt(time);
    if (first > 64) this.drop(first);
  }

  /** @param {number} time @returns {number} Index of what held then; -1 before the first. */
  indexAt(time) {
    let low = 0;
    let high = this.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at[middle] <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** @param {number} time @returns {{running: number, waiting: number}} */
  valueAt(time) {
    const index = this.indexAt(time);
    return index < 0 ? { running: 0, waiting: 0 } : { running: this.running[index], waiting: this.waiting[index] };
  }

  /**
   * The largest value in each of equal parts of a time range, so that no short peak is lost.
   * @param {"running" | "waiting"} which
   * @param {number} from @param {number} to @param {number} parts
   * @returns {Float64Array}
   */
  peaks(which, from, to, parts) {
    const values = this[which];
    const result = new Float64Array(parts);
    const step = (to - from) / parts;
    let index = this.indexAt(from);
    let current = index < 0 ? 0 : values[index];
    for (let part = 0; part < parts; part += 1) {
      const end = from + (part + 1) * step;
      let peak = current;
      while (index + 1 < this.length && this.at[index + 1] < end) {
        index += 1;
        current = values[index];
        if (current > peak) peak = current;
      }
      result[part] = peak;
    }
    return result;
  }
}

/** @typedef {import("./types.js").ModelState} ModelState */
/** @typedef {{from: number, to: number, state: ModelState}} Stretch */

/** The states of one model. */
export class States {
  constructor() {
    /** @type {{at: number, state: ModelState}[]} */
    this.changes = [];
  }

  /**
   * @param {number} at @param {ModelState} state
   * @param {ModelState} [left] What it left; it has been in it since the change before, or since `begin`.
   * @param {number} [begin] When this run of llmux began: nothing is known of the time between two runs.
   */
  push(at, state, left, begin = at) {
    const last = this.changes.at(-1);
    if (last && at < last.at) return; // already known
    if (last?.state === state && last.at >= begin) return;
    if (left && begin < at && (!last || last.at < begin)) this.changes.push({ at: begin, state: left });
    this.changes.push({ at, state });
    if (this.changes.length > CAPACITY) this.changes.splice(0, CAPACITY / 4);
  }

  /** @param {number} time */
  trim(time) {
    const first = this._indexAt(time);
    if (first > 64) this.changes.splice(0, first);
  }

  /** @param {number} time */
  _indexAt(time) {
    let low = 0;
    let high = this.changes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.changes[middle].at <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** @param {number} time @returns {Stretch | null} */
  at(time) {
    const index = this._indexAt(time);
    if (index < 0) return null;
    const { at, state } = this.changes[index];
    return { from: at, to: this.changes[index + 1]?.at ?? Infinity, state };
  }

  /** Intervals that overlap a range, clipped to it. @param {number} from @param {number} to @returns {Stretch[]} */
  within(from, to) {
    const stretches = [];
    for (let i = Math.max(0, this._indexAt(from)); i < this.changes.length && this.changes[i].at < to; i += 1) {
      const start = Math.max(from, this.changes[i].at);
      const end = Math.min(to, this.changes[i + 1]?.at ?? Infinity);
      if (end > start || end === to) stretches.push({ from: start, to: end, state: this.changes[i].state });
    }
    return stretches;
  }
}
