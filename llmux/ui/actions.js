/** Operator actions; those that cut or delay requests ask for confirmation. */

import { access, call, post } from "./api.js";
import { many } from "./format.js";
import { confirm, toast } from "./notices.js";
import { awakeOf, sharesMemory } from "./switches.js";

/** @typedef {import("./state.js").Store} Store */

const READ_KEY = "This is a read key, which shows llmux and steers nothing. Keys, above, takes a control key.";

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

  /** Tell a user whose key only reads, and return true. */
  _isRefused() {
    if (access.readsOnly) toast(READ_KEY, "bad");
    return access.readsOnly;
  }

  /** The models that a switch to this one may drain, their requests in flight, and the requests waiting for the others. @param {string} model */
  _cost(model) {
    const name = this._store.model(model)?.group ?? "";
    const group = this._store.status?.groups[name];
    const shared = sharesMemory(this._store, name);
    const fits = shared && this._fits(model);
    const leaving = group && !fits ? awakeOf(group).filter((other) => other !== model) : [];
    const count = (/** @type {string[]} */ names, /** @type {"in_flight" | "queued"} */ what) => names.reduce((sum, other) => sum + (this._store.model(other)?.[what] ?? 0), 0);
    const others = (group?.models ?? []).filter((other) => other !== model);
    return { leaving, shared, running: count(leaving, "in_flight"), waiting: count(others, "queued") };
  }

  /** True if there is memory for a model beside what is awake. @param {string} model */
  _fits(model) {
    const { group, needs_waking: needs, needs_asleep: asleep } = this._store.model(model) ?? {};
    const memory = this._store.status?.groups[group ?? ""]?.memory ?? [];
    // Without sizes, lists of models say who may be awake beside whom, and the page does not know them.
    return Boolean(needs && memory.length) && memory.every(({ resource, free }) => (needs?.[resource] ?? 0) - (asleep?.[resource] ?? 0) <= free);
  }

  /** @param {string} model */
  async switchTo(model) {
    if (this._isRefused()) return;
    const { leaving, shared, running } = this._cost(model);
    if (running) {
      const text = shared
        ? `There may be no memory for it beside ${leaving.join(", ")}. What has to leave first finishes its requests (${running} in flight in all), and admits no new ones meanwhile.`
        : `${many(running, "request")} in flight on ${leaving[0]} must finish first; it admits no new ones meanwhile.`;
      if (!(await confirm({ title: `Switch to ${model}?`, text, yes: "Switch" })).yes) return;
    }
    await tell(() => post("control/switch", { model }));
  }

  /** @param {string} model */
  async sleep(model) {
    if (this._isRefused()) return;
    const { in_flight: running = 0, queued = 0 } = this._store.model(model) ?? {};
    if (running || queued) {
      const text = `${many(running, "request")} in flight will finish first. A request for it wakes it again${queued ? `, and ${many(queued, "request")} wait now` : ""}.`;
      if (!(await confirm({ title: `Put ${model} to sleep?`, text, yes: "Sleep" })).yes) return;
    }
    await tell(() => post("control/sleep", { model }));
  }

  /** @param {string} model */
  async pin(model) {
    if (this._isRefused()) return;
    const { shared, waiting } = this._cost(model);
    const whose = shared ? "models that cannot be awake beside it" : "the group's other models";
    const text = `Switches to ${model} and keeps it awake. Requests for ${whose} get 503 until it is unpinned${waiting ? `; ${waiting} wait now` : ""}.`;
    const answer = await confirm({ title: `Pin ${model}?`, text, yes: "Pin", option: "Let them wait instead" });
    if (answer.yes) await tell(() => post("control/pin", { model, wait: answer.option }));
  }

  /** @param {{group: string} | {model: string}} what */
  async unpin(what) {
    if (!this._isRefused()) await tell(() => post("control/unpin", what));
  }

  /** @param {"auto" | "manual"} mode */
  async setMode(mode) {
    if (this._store.status?.mode === mode || this._isRefused()) return;
    if (mode === "manual") {
      const asleep = Object.values(this._store.status?.models ?? {}).filter((model) => !model.awake);
      const waiting = asleep.reduce((sum, model) => sum + model.queued, 0);
      const text = `Only operators can switch then. Requests for models that are not awake get 503${waiting ? `, including the ${waiting} that wait now` : ""}.`;
      if (!(await confirm({ title: "Manual mode?", text, yes: "Go manual", danger: waiting > 0 })).yes) return;
    }
    await tell(() => post("control/mode", { mode }));
  }

  /** Take no new requests, or take them again. @param {boolean} cordoned */
  async setCordoned(cordoned) {
    const text = "New requests get 503, and a balancer sends them elsewhere. Those in line or in flight are served. Ends when it is uncordoned or restarted.";
    if (cordoned && !(await confirm({ title: "Cordon llmux?", text, yes: "Cordon", danger: true })).yes) return;
    await tell(() => post(cordoned ? "control/cordon" : "control/uncordon", {}));
  }

  async reload() {
    if (this._isRefused()) return;
    const text = "Reads the config file again. Models whose server or hooks changed are drained and put to sleep with their old hooks; a bad file changes nothing.";
    if ((await confirm({ title: "Reload the config?", text, yes: "Reload" })).yes) await tell(() => post("control/reload", {}));
  }

  /** @param {string} id Of a request. */
  async cancel(id) {
    if (this._isRefused()) return;
    const request = this._store.requests.get(id);
    const text = request ? `${request.method} ${request.path} for ${request.model || "no model"}, from ${request.client ?? "an unknown client"}. The client gets an error or a cut response.` : "";
    if (!(await confirm({ title: `Cancel request ${id}?`, text, yes: "Cancel the request", danger: true })).yes) return;
    await tell(async () => (await call(`control/requests/${encodeURIComponent(id)}`, { method: "DELETE" })).json());
  }
}
