/** The keys of this tab: for the control API, and for model traffic. Nothing outlives the tab. */

import { byId, say } from "./dom.js";

/** @typedef {"control" | "model"} KeyKind */

const stored = (/** @type {KeyKind} */ kind) => `llmux-key-${kind}`;

/** @param {KeyKind} kind @returns {Record<string, string>} Headers that show the key, if there is one. */
export function authorization(kind) {
  const key = sessionStorage.getItem(stored(kind));
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** @type {Promise<boolean> | null} */
let asking = null;

/**
 * Ask for keys; calls made while the dialog is open share its result.
 * @param {string} why Shown to the user.
 * @returns {Promise<boolean>} Whether keys were given.
 */
export function askKeys(why) {
  asking ??= ask(why).finally(() => (asking = null));
  return asking;
}

/** @param {string} why @returns {Promise<boolean>} */
function ask(why) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("keys"));
  const fields = { control: byId("keys-control"), model: byId("keys-model") };
  say(byId("keys-text"), why);
  for (const kind of /** @type {KeyKind[]} */ (["control", "model"])) {
    fields[kind].value = sessionStorage.getItem(stored(kind)) ?? "";
  }
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "yes";
      for (const kind of /** @type {KeyKind[]} */ (["control", "model"])) {
        const key = fields[kind].value.trim();
        fields[kind].value = "";
        if (!given) continue;
        if (key) sessionStorage.setItem(stored(kind), key);
        else sessionStorage.removeItem(stored(kind));
      }
      resolve(given);
    }, { once: true });
  });
}
