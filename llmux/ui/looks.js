/** A colour and a pattern for each state, so that users need to tell apart only one of them. */

import { colour } from "./theme.js";

/** @typedef {import("./types.js").ModelState} ModelState */

/** States in the order of the legend; `lines` are strokes in a tile of 8 by 8. */
export const STATES = /** @type {Record<ModelState, {label: string, lines: number[][]}>} */ ({
  awake: { label: "serving", lines: [] },
  waking: { label: "waking", lines: [[-2, 10, 10, -2], [-6, 6, 6, -6], [2, 14, 14, 2]] },
  draining: { label: "draining", lines: [[2, -1, 2, 9], [6, -1, 6, 9]] },
  sleeping: { label: "falling asleep", lines: [[-2, -2, 10, 10], [-6, 2, 6, 14], [2, -6, 14, 6]] },
  failed: { label: "failed", lines: [[0, 0, 8, 8], [8, 0, 0, 8]] },
  asleep: { label: "asleep", lines: [] },
});

const TILE = 8;

/**
 * Canvas fills in the current colours; create them again when colours change.
 * @param {CanvasRenderingContext2D} context
 * @param {number} scale Device pixels per pixel.
 */
export function fills(context, scale) {
  const result = /** @type {Record<ModelState, {fill: string | CanvasPattern, edge: string}>} */ ({});
  for (const [state, { lines }] of Object.entries(STATES)) {
    const edge = colour(state);
    result[/** @type {ModelState} */ (state)] = { fill: lines.length ? hatch(context, edge, lines, scale) : edge, edge };
  }
  const edge = colour("line");
  return { ...result, unknown: { fill: hatch(context, edge, [[-2, 10, 10, -2]], scale), edge } };
}

/** @param {CanvasRenderingContext2D} context @param {string} edge @param {number[][]} lines @param {number} scale */
function hatch(context, edge, lines, scale) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = TILE * scale;
  const ink = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  ink.scale(scale, scale);
  ink.globalAlpha = 0.28;
  ink.fillStyle = edge;
  ink.fillRect(0, 0, TILE, TILE);
  ink.globalAlpha = 1;
  ink.strokeStyle = edge;
  ink.lineWidth = 1.6;
  ink.beginPath();
  for (const [x0, y0, x1, y1] of lines) {
    ink.moveTo(x0, y0);
    ink.lineTo(x1, y1);
  }
  ink.stroke();
  const pattern = /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
  pattern.setTransform(new DOMMatrix().scale(1 / scale));
  return pattern;
}

const MODEL_COLOURS = 8;

/** @param {number} index Of a model. @returns {string} The name of the CSS variable of its colour. */
export const modelColour = (index) => `model-${index % MODEL_COLOURS}`;
