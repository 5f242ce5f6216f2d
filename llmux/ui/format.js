/** Formats numbers and times for people. */

/** @param {number | null | undefined} secs @returns {string} */
export function duration(secs) {
  if (secs === null || secs === undefined || !Number.isFinite(secs)) return "–";
  if (secs < 0.0005) return "0 s";
  if (secs < 0.0995) return `${Math.round(secs * 1000)} ms`;
  if (secs < 9.95) return `${secs.toFixed(1)} s`;
  if (secs < 99.5) return `${Math.round(secs)} s`;
  const whole = Math.round(secs);
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} m`;
}

/** @param {number} unix @param {boolean} [tenths] @returns {string} Local time of day. */
export function clock(unix, tenths = false) {
  const date = new Date(unix * 1000);
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return tenths ? `${text}.${Math.floor(date.getMilliseconds() / 100)}` : text;
}

/** @param {number} count @returns {string} */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = count / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** @param {number} count @returns {string} Bytes in GiB or MiB, as configs name memory. */
export function binary(count) {
  const mib = count / 2 ** 20;
  const [value, unit] = mib < 1000 ? [mib, "MiB"] : [mib / 1024, "GiB"];
  return `${value < 9.95 && value % 1 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/** @param {string} name @param {number} most @returns {string} The name, without its organisation if it is longer than `most`. */
export function shortName(name, most) {
  const cut = name.lastIndexOf("/", name.length - 2);
  return name.length > most && cut > 0 ? `…${name.slice(cut)}` : name;
}

/** @param {number} count @param {string} noun @returns {string} */
export const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
