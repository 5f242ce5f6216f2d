/** Operator actions; those that cut or delay requests ask for confirmation. */

import { call, post } from "./api.js";
import { many } from "./format.js";
import { confirm, toast } from "./notices.js";

/** @typedef {import("./state.js").Store} Store */

/** Run an action and show its result. @param {() => Promise<{message: string}>} act */
async function tell(act) {
  try {
    toast((await act()).message);
  } catch (error) {
    toast(/** @type {Error} */ (error).message, "bad");
  }
}

/** Commands to llmux. */
export class Actions {
  /** @param {Store} store */
  constructor(store) {
    this._store = store;
  }

  /** The model that a switch to this one would drain, its requests in flight, and the requests waiting for the others. @param {string} model */
  _cost(model) {
    const group = this._store.status?.groups[this._store.model(model)?.group ?? ""];
    const active = group?.active_model;
    const running = (active && active !== model && this._store.model(active)?.in_flight) || 0;
    const others = (group?.models ?? []).filter((name) => name !== model);
    const waiting = others.reduce((sum, name) => sum + (this._store.model(name)?.queued ?? 0), 0);
    return { active, running, waiting };
  }

  /** @param {string} model */
  async switchTo(model) {
    const { active, running } = this._cost(model);
    if (running) {
      const text = `${many(running, "request")} in flight on ${active} must finish first; it admits no new ones meanwhile.`;
      if (!(await confirm({ title: `Switch to ${model}?`, text, yes: "Switch" })).yes) return;
    }
    await tell(() => post("control/switch", { model }));
  }

  /** @param {string} model */
  async sleep(model) {
    const { in_flight: running = 0, queued = 0 } = this._store.model(model) ?? {};
    if (running || queued) {
      const text = `${many(running, "request")} in flight will finish first. A request for it wakes it again${queued ? `, and ${many(queued, "request")} wait now` : ""}.`;
      if (!(await confirm({ title: `Put ${model} to sleep?`, text, yes: "Sleep" })).yes) return;
    }
    await tell(() => post("control/sleep", { model }));
  }

  /** @param {string} model */
  async pin(model) {
    const { waiting } = this._cost(model);
    const text = `Switches to ${model} and keeps it awake. Requests for the group's other models get 503 until it is unpinned${waiting ? `; ${waiting} wait now` : ""}.`;
    const answer = await confirm({ title: `Pin ${model}?`, text, yes: "Pin", option: "Let them wait instead" });
    if (answer.yes) await tell(() => post("control/pin", { model, wait: answer.option }));
  }

  /** @param {string} group */
  unpin = (group) => tell(() => post("control/unpin", { group }));

  /** @param {"auto" | "manual"} mode */
  async setMode(mode) {
    if (this._store.status?.mode === mode) return;
    if (mode === "manual") {
      const asleep = Object.values(this._store.status?.models ?? {}).filter((model) => !model.awake);
      const waiting = asleep.reduce((sum, model) => sum + model.queued, 0);
      const text = `Only operators can switch then. Requests for models that are not awake get 503${waiting ? `, including the ${waiting} that wait now` : ""}.`;
      if (!(await confirm({ title: "Manual mode?", text, yes: "Go manual", danger: waiting > 0 })).yes) return;
    }
    await tell(() => post("control/mode", { mode }));
  }

  async reload() {
    const text = "Reads the config file again. Models whose server or hooks changed are drained and put to sleep with their old hooks; a bad file changes nothing.";
    if ((await confirm({ title: "Reload the config?", text, yes: "Reload" })).yes) await tell(() => post("control/reload", {}));
  }

  /** @param {string} id Of a request. */
  async cancel(id) {
    const request = this._store.requests.get(id);
    const text = request ? `${request.method} ${request.path} for ${request.model || "no model"}, from ${request.client ?? "an unknown client"}. The client gets an error or a cut response.` : "";
    if (!(await confirm({ title: `Cancel request ${id}?`, text, yes: "Cancel the request", danger: true })).yes) return;
    await tell(async () => (await call(`control/requests/${encodeURIComponent(id)}`, { method: "DELETE" })).json());
  }
}
