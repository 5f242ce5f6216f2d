/** The image of the next message: chosen, pasted or dropped, made small enough, and shown. */

import { byId, h, say } from "./dom.js";
import { bytes } from "./format.js";
import { toast } from "./notices.js";

const LONGEST_SIDE = 1568; // pixels; vision models scale larger images down themselves
const LARGEST_BYTES = 1 << 20; // a larger file is encoded again
const QUALITY = 0.88;

/** Holds at most one image. */
export class Picture {
  constructor() {
    /** As a data: URL; empty: none. */
    this.url = "";
    this._box = byId("chat-picture");
    this._file = byId("chat-file");
    byId("chat-image").addEventListener("click", () => this._file.click());
    this._file.addEventListener("change", () => {
      this._take(this._file.files);
      this._file.value = ""; // so that the same file can be chosen again
    });
    byId("chat-picture-drop").addEventListener("click", () => {
      this.clear();
      byId("chat-text").focus();
    });
    byId("chat-text").addEventListener("paste", (/** @type {ClipboardEvent} */ event) => {
      if (this._take(event.clipboardData?.files)) event.preventDefault();
    });
    const section = byId("playground");
    section.addEventListener("dragover", (/** @type {DragEvent} */ event) => {
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    });
    section.addEventListener("drop", (/** @type {DragEvent} */ event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault(); // or the browser leaves the page to show the file
      this._take(event.dataTransfer.files);
    });
  }

  clear() {
    this.url = "";
    this._box.hidden = true;
    byId("chat-thumb").removeAttribute("src");
  }

  /** @param {FileList | null | undefined} files @returns {boolean} Whether there was one. */
  _take(files) {
    const file = files?.[0];
    if (!file) return false;
    small(file).then(
      (url) => {
        this.url = url;
        byId("chat-thumb").src = url;
        say(byId("chat-picture-name"), `${file.name} · ${bytes(Math.round(url.length * 0.75))}`);
        this._box.hidden = false;
      },
      () => toast(`${file.name} is no image that this browser can read.`, "bad"),
    );
    return true;
  }
}

/** An image file as a data: URL, scaled down if it is large. @param {File} file @returns {Promise<string>} */
async function small(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  // GIF and other formats that servers may not know are encoded again, too.
  if (scale === 1 && file.size <= LARGEST_BYTES && ["image/png", "image/jpeg"].includes(file.type)) return asUrl(file);
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) }));
  const ink = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  ink.fillStyle = "#fff"; // JPEG has no transparency
  ink.fillRect(0, 0, canvas.width, canvas.height);
  ink.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", QUALITY);
}

/** @param {File} file @returns {Promise<string>} */
function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(/** @type {string} */ (reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
