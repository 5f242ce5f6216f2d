/** Marks in the navigation the section that is being read; the links themselves need no script. */

const links = [...document.querySelectorAll("#sections a")];
const sections = links.map((link) => /** @type {HTMLElement} */ (document.querySelector(/** @type {string} */ (link.getAttribute("href")))));
const READ_AT = 0.3; // of the window's height, from the top

let pending = 0;

function mark() {
  pending = 0;
  const line = innerHeight * READ_AT;
  const isAtEnd = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  const read = isAtEnd ? sections.length - 1 : sections.findLastIndex((section) => section.getBoundingClientRect().top <= line);
  links.forEach((link, index) => {
    if (index === Math.max(0, read)) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
  const current = /** @type {HTMLElement} */ (links[Math.max(0, read)]);
  const bar = /** @type {HTMLElement} */ (current.parentElement);
  // Not scrollIntoView, which would also move the page.
  bar.scrollLeft = current.offsetLeft - (bar.clientWidth - current.offsetWidth) / 2;
}

const soon = () => (pending ||= requestAnimationFrame(mark));
addEventListener("scroll", soon, { passive: true });
addEventListener("resize", soon);
mark();
