/** Short messages, and confirmation dialogs. */

import { byId, h, say } from "./dom.js";

const SHOWN_MS = 6000;
const MOST_TOASTS = 4;
const QUIET_MS = 1500; // between two announcements

/** @param {string} text @param {"good" | "bad"} [mood] */
export function toast(text, mood = "good") {
  const box = byId("toasts");
  // An event may repeat what the response to a command said.
  if ([...box.children].some((shown) => shown.firstElementChild?.textContent === text)) return;
  const close = h("button.quiet", { type: "button", "aria-label": "Dismiss" }, "×");
  const element = h(`div.toast.${mood}`, { role: mood === "bad" ? "alert" : null }, h("span", {}, text), close);
  close.addEventListener("click", () => element.remove());
  box.append(element);
  while (box.childElementCount > MOST_TOASTS) box.firstElementChild.remove();
  if (mood === "good") setTimeout(() => element.remove(), SHOWN_MS);
}

let announced = 0;
let pending = "";

/** Announce a text to screen readers; only the latest of several in a short time. @param {string} text */
export function announce(text) {
  const wait = announced + QUIET_MS - performance.now();
  if (!pending) {
    setTimeout(() => {
      announced = performance.now();
      say(byId("announce"), pending);
      pending = "";
    }, Math.max(0, wait));
  }
  pending = text;
}

/**
 * @typedef {{title: string, text: string, yes: string, option?: string, danger?: boolean}} Question
 */

/**
 * Ask for confirmation.
 * @param {Question} question
 * @returns {Promise<{yes: boolean, option: boolean}>}
 */
export function confirm({ title, text, yes, option = "", danger = false }) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("confirm"));
  const box = byId("confirm-option");
  const button = byId("confirm-yes");
  say(byId("confirm-title"), title);
  say(byId("confirm-text"), text);
  say(button, yes);
  button.className = danger ? "danger" : "primary";
  box.hidden = !option;
  say(box.querySelector("span"), option);
  box.querySelector("input").checked = false;
  dialog.returnValue = "";
  dialog.showModal();
  // For destructive actions Enter alone must not confirm: focus "Back".
  (danger ? dialog.querySelector("button[value=no]") : button).focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => resolve({ yes: dialog.returnValue === "yes", option: box.querySelector("input").checked }),
      { once: true },
    );
  });
}
