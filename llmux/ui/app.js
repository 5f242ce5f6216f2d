/** Wires the page together. */

import { Actions } from "./actions.js";
import { access } from "./api.js";
import { Costs } from "./costs.js";
import { Detail } from "./detail.js";
import { byId, say } from "./dom.js";
import { Feed } from "./feed.js";
import { duration } from "./format.js";
import { Groups, spoken } from "./groups.js";
import { Gpus } from "./gpus.js";
import { askKeys } from "./keys.js";
import { Logs } from "./logs.js";
import { announce, toast } from "./notices.js";
import { Playground } from "./playground.js";
import { Requests } from "./requests.js";
import "./sections.js";
import { Store } from "./state.js";
import { awakeOf, moved, switchesOf } from "./switches.js";
import { Timeline } from "./timeline.js";

const TRIM_MS = 30_000;
const LINKS = { connecting: "connecting", live: "live", down: "disconnected", locked: "locked" };

export const store = new Store(); // exported for looks from the console, too
const actions = new Actions(store);
const timeline = new Timeline(store, (record) => detail.showSwitch(record));
const detail = new Detail(store, timeline);
const feed = new Feed(store, showLink, onEvent);
new Groups(store, actions);
new Requests(store, actions, (request) => detail.showRequest(request));
new Costs(store);
new Gpus(store);
new Logs(store);
new Playground(store, (id) => {
  const request = store.requests.get(id) ?? store.ended.get(id);
  if (request) detail.showRequest(request);
  else toast(`Request ${id} is no longer remembered.`, "bad");
});

/** @param {import("./feed.js").Link} link @param {string} why */
function showLink(link, why) {
  const since = link === "live" ? "" : ` This data is from ${new Date().toLocaleTimeString()}.`;
  byId("link").dataset.state = link;
  say(byId("link"), LINKS[link]);
  const bar = byId("offline");
  if (bar.hidden || link !== "down") say(bar, why && (link === "locked" ? why : `Disconnected: ${why}. Reconnecting.${store.status ? since : ""}`));
  bar.hidden = link === "live";
  document.body.classList.toggle("stale", link !== "live");
}

/** @param {string} kind @param {any} data */
function onEvent(kind, data) {
  const text = spoken(kind, data);
  if (text) announce(text);
  if (kind !== "reload") return;
  if (!data.ok) toast(data.mistakes.join("\n"), "bad");
  else if (data.needs_restart.length) toast(`Reloaded; ${data.needs_restart.join(", ")} need a restart.`);
}

store.on("status", () => {
  const status = store.status;
  if (!status) return;
  byId("mode-auto").setAttribute("aria-pressed", String(status.mode === "auto"));
  byId("mode-manual").setAttribute("aria-pressed", String(status.mode === "manual"));
  const cordoned = Boolean(status.cordoned); // an older llmux does not say
  byId("cordon").setAttribute("aria-pressed", String(cordoned));
  say(byId("cordon"), cordoned ? "Uncordon" : "Cordon");
  say(byId("cordoned"), cordoned ? "Cordoned: new requests get 503; those in line or in flight are served." : "");
  byId("cordoned").hidden = !cordoned;
  say(byId("facts"), `${status.version} · ${status.policy} · up ${duration(store.now() - status.started)}${access.readsOnly ? " · read only" : ""}`);
  const active = Object.values(status.groups).map((group) => {
    const switches = switchesOf(group);
    const stay = awakeOf(group).filter((name) => !switches.some((record) => moved(record).includes(name)));
    return [...stay, ...switches.map((record) => record.to)].join(" + ") || "idle";
  });
  document.title = `${active.join(", ")} · llmux`;
});

byId("mode-auto").addEventListener("click", () => actions.setMode("auto"));
byId("mode-manual").addEventListener("click", () => actions.setMode("manual"));
byId("cordon").addEventListener("click", () => actions.setCordoned(!store.status?.cordoned));
byId("reload").addEventListener("click", () => actions.reload());
byId("key").addEventListener("click", async () => {
  if (!(await askKeys("For llmux with control_keys, read_keys or api_keys."))) return;
  access.readsOnly = false; // until an answer says so again
  feed.retry();
});
// Not submit buttons: Enter in a field would press the first of those.
for (const back of document.querySelectorAll("dialog button[value=no]")) {
  back.addEventListener("click", () => back.closest("dialog")?.close("no"));
}
setInterval(() => store.trim(), TRIM_MS);
feed.run();
