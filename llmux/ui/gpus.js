/** The memory and load of each GPU, where nvidia-smi is. */

import { byId, h, patchList, say } from "./dom.js";

/** @typedef {import("./state.js").Store} Store */
/** @typedef {import("./types.js").Gpu} Gpu */

const GIB = 2 ** 30;

export class Gpus {
  /** @param {Store} store */
  constructor(store) {
    this._box = byId("gpus");
    store.on("status", () => this._update(store.status?.gpus ?? []));
  }

  /** @param {Gpu[]} gpus */
  _update(gpus) {
    this._box.hidden = !gpus.length;
    patchList(this._box, gpus, (gpu) => `${gpu.index} ${gpu.name}`, make, patch);
  }
}

/** @param {Gpu} gpu */
function make(gpu) {
  const card = h("div.card.gpu");
  card.append(
    h("span.gpu-name", {}, h("strong", {}, `GPU ${gpu.index}`), ` ${gpu.name}`),
    (card.bar = h("progress", { max: 1, "aria-label": `Memory in use on GPU ${gpu.index}` })),
    (card.text = h("span.num.small-text")),
  );
  return card;
}

/** @param {any} card @param {Gpu} gpu */
function patch(card, { memory_used_bytes: used, memory_total_bytes: total, utilization }) {
  const known = used !== null && total !== null && total > 0;
  card.bar.hidden = !known;
  if (known) card.bar.value = Math.min(1, used / total);
  const memory = known ? `${(used / GIB).toFixed(1)} of ${(total / GIB).toFixed(0)} GiB` : "memory unknown";
  say(card.text, utilization === null ? memory : `${memory} · ${Math.round(utilization * 100)} % busy`);
}
