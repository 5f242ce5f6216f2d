/** The keys of this tab: for the control API, and for model traffic. Nothing outlives the tab. */

import { byId, say } from "./dom.js";

/** @typedef {"control" | "model"} KeyKind */

const stored = (/** @type {KeyKind} */ kind) => `llmux-key-${kind}`;

/** @param {KeyKind} kind @returns {Record<string, string>} Headers that show the key, if there is one. */
export function authorization(kind) {
  const key = sessionStorage.getItem(stored(kind));
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** @param {KeyKind} kind @returns {string} Empty if no key was sent, else that the key was not accepted. */
export const wrongKey = (kind) => (sessionStorage.getItem(stored(kind)) ? WRONG[kind] : "");

const WRONG = {
  control: "Wrong control key: this llmux does not accept it.",
  model: "Wrong key for the playground: this llmux does not accept it.",
};

/** @type {Promise<boolean> | null} */
let asking = null;

/**
 * Ask for keys; calls made while the dialog is open share its result.
 * @param {string} why Shown to the user.
 * @param {KeyKind | null} [refused] The kind of key that a request has just been refused for.
 * @returns {Promise<boolean>} Whether keys were given.
 */
export function askKeys(why, refused = null) {
  asking ??= ask(why, refused).finally(() => (asking = null));
  return asking;
}

/** @param {string} why @param {KeyKind | null} refused @returns {Promise<boolean>} */
function ask(why, refused) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("keys"));
  const fields = { control: byId("keys-control"), model: byId("keys-model") };
  const wrong = refused ? wrongKey(refused) : "";
  say(byId("keys-text"), why);
  say(byId("keys-wrong"), wrong);
  byId("keys-wrong").hidden = !wrong;
  for (const kind of /** @type {KeyKind[]} */ (["control", "model"])) {
    fields[kind].value = sessionStorage.getItem(stored(kind)) ?? "";
    fields[kind].setAttribute("aria-invalid", String(Boolean(wrong) && kind === refused));
  }
  dialog.returnValue = "";
  dialog.showModal();
  if (wrong && refused) fields[refused].select();
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
