/** Light, dark, or the system's theme. */

const NAME = "llmux-theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const SIGN = { system: "◐", light: "☀", dark: "☾" };
const SAYS = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
/** @typedef {keyof typeof NEXT} Theme */

const listeners = /** @type {Set<() => void>} */ (new Set());

/** @returns {Theme} */
function chosen() {
  const stored = localStorage.getItem(NAME) ?? "system";
  return stored in NEXT ? /** @type {Theme} */ (stored) : "system";
}

function apply() {
  const theme = chosen();
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) {
    button.textContent = SIGN[theme];
    button.setAttribute("aria-label", SAYS[theme]);
    button.title = SAYS[theme];
  }
  for (const listener of listeners) listener();
}

/** Call the listener when colours may have changed. @param {() => void} listener */
export function onTheme(listener) {
  listeners.add(listener);
}

/** @param {string} name Of a CSS variable. @returns {string} Its colour now. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

document.getElementById("theme")?.addEventListener("click", () => {
  localStorage.setItem(NAME, NEXT[chosen()]);
  apply();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
apply();
