/** The part of the hour that the timeline shows. */

import { KEPT_SECS } from "./state.js";

const SHORTEST_SECS = 5;
/** Share of the span kept free on the right while following. */
const AHEAD = 0.015;

/** A range of time that may follow the clock. */
export class View {
  /** @param {() => number} now @param {number} span In seconds. */
  constructor(now, span) {
    this._now = now;
    this.span = span;
    this._end = 0;
    this.follows = true;
    /** @type {() => void} */
    this.onChange = () => {};
  }

  get to() {
    return this.follows ? this._now() + this.span * AHEAD : this._end;
  }

  get from() {
    return this.to - this.span;
  }

  /** Keep the range within the recorded hour; reaching its end turns following on. @param {number} end */
  _moveTo(end) {
    const now = this._now();
    this.follows = end >= now;
    this._end = Math.max(end, now - KEPT_SECS + this.span * 0.9);
    this.onChange();
  }

  /** @param {number} secs Positive: later. */
  pan(secs) {
    this._moveTo(this.to + secs);
  }

  /** @param {number} factor Above 1: out. @param {number} [anchor] The time that stays where it is. */
  zoom(factor, anchor) {
    const span = Math.min(KEPT_SECS, Math.max(SHORTEST_SECS, this.span * factor));
    const to = this.to;
    const end = anchor === undefined ? to : anchor + (to - anchor) * (span / this.span);
    const follows = this.follows && anchor === undefined;
    this.span = span;
    if (follows) this.onChange();
    else this._moveTo(end);
  }

  live() {
    this.follows = true;
    this.onChange();
  }

  oldest() {
    this._moveTo(this._now() - KEPT_SECS + this.span);
  }

  /** Show an interval, with a margin around it. @param {number} from @param {number} to */
  show(from, to) {
    if (from >= this.from && to <= this.to) return;
    this.span = Math.min(KEPT_SECS, Math.max(this.span, (to - from) * 1.5));
    this._moveTo((from + to) / 2 + this.span / 2);
  }
}
