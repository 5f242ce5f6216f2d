/** Builds elements without HTML strings: all text goes through text nodes, so nothing can inject markup. */

import { shortName } from "./format.js";

const LONGEST_OPTION = 24; // characters of a model's name in a list to choose from

/** @param {string} id @returns {any} The element, which index.html has. */
export const byId = (id) => document.getElementById(id);

/**
 * Create an element.
 * @param {string} tag Its name, with classes: `span.chip.small`.
 * @param {Record<string, any>} [props] Attributes; `on…` are listeners, false and null leave out.
 * @param {...(Node | string | number | null | undefined)} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** Set an element's text if it differs. @param {Element} element @param {string} text */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * A name that gives up its organisation first where there is little room: `mistralai/Small` becomes
 * `m…/Small`. The whole name stays in the text and in the title.
 * @param {Element} element @param {string} name
 */
export function sayName(element, name) {
  if (element.textContent === name) return;
  const cut = name.lastIndexOf("/", name.length - 2);
  element.classList.toggle("name", cut > 0);
  element.setAttribute("title", name);
  if (cut > 0) element.replaceChildren(h("span.name-owner", {}, name.slice(0, cut)), h("span.name-slash", {}, "/"), h("span.name-own", {}, name.slice(cut + 1)));
  else element.textContent = name;
}

/** @param {string} name @returns {any} An element with a name, as `sayName` shows it. */
export function nameOf(name) {
  const element = h("span");
  sayName(element, name);
  return element;
}

/**
 * Match a parent's children to a list, reusing elements by key and moving as few as possible.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => any} make Makes an element for an item.
 * @param {(element: any, item: T) => void} [patch] Brings an element up to date.
 */
export function patchList(parent, items, keyOf, make, patch = () => {}) {
  const keys = items.map(keyOf);
  const wanted = new Set(keys);
  /** @type {Map<string, any>} */
  const old = new Map();
  for (const child of [.../** @type {any} */ (parent.children)]) {
    // Remove these first: an element that is moved past them would lose its focus.
    if (wanted.has(child.key)) old.set(child.key, child);
    else child.remove();
  }
  let next = parent.firstElementChild;
  items.forEach((item, index) => {
    let element = old.get(keys[index]);
    if (!element) {
      element = make(item);
      element.key = keys[index];
    }
    patch(element, item);
    if (element === next) next = element.nextElementSibling;
    else parent.insertBefore(element, next);
  });
}

/**
 * Match a select's options to a list, keeping the selection if it still exists.
 * @param {HTMLSelectElement} select @param {string[]} values
 * @param {(value: string) => string} [label] Returns what is shown for a value.
 */
export function patchOptions(select, values, label = (value) => shortName(value, LONGEST_OPTION)) {
  patchList(select, values, (value) => value, (value) => h("option", { value, title: value }, label(value)));
}
