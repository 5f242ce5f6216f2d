/** Short explanations of rule names; docs/policies.md has the long ones. */

const MEANINGS = /** @type {Record<string, string>} */ ({
  bound: "the oldest request has waited for max_wait_secs, and the active model has had its minimum turn",
  close: "the time waited for it outweighs what a switch costs requests that arrive meanwhile",
  "oldest first": "the oldest request decides",
  "no work left": "the active model had no more work",
  "longest wait": "its oldest request has waited too long",
  "longest line": "most requests wait for it",
  "worth it": "the wait outweighs the cost of the switch",
  forced: "an operator's command",
  pinned: "an operator pinned it",
  standby: "nothing else was wanted for long enough",
  idle: "it was not used for idle_sleep_secs",
  preload: "configured to be awake from the start",
});

/** @param {string} rule @returns {string} The rule with what it means, where that is known. */
export const ruleInWords = (rule) => (Object.hasOwn(MEANINGS, rule) ? `${rule}: ${MEANINGS[rule]}` : rule || "–");
