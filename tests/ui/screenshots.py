"""Makes the screenshots of docs/ui: `python -m tests.ui.screenshots` (six minutes).

A real llmux with stand-in models that serve, wait and switch, and one that fails; see `ask_all`.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.ui.browser import Watched, running_browser
from tests.ui.stage import Stage, staged, standin

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "ui"
BUSY_S = 270
PATIENCE_MS = 90_000  # the machine draws pictures beside six model servers and their clients
SEED = 7
WEIGHTS = {
    "Qwen/Qwen3-Coder-30B-A3B": 5,
    "meta-llama/Llama-3.3-70B": 4,
    "mistralai/Mistral-Small-24B": 3,
    "google/gemma-3-27b-it": 2,
    "BAAI/bge-m3": 6,
    "openai/whisper-large-v3": 3,
}


def models() -> dict[str, Any]:
    """Six models on two GPUs; the last one of the first is broken."""
    wake_s = {
        "Qwen/Qwen3-Coder-30B-A3B": 2.5,
        "meta-llama/Llama-3.3-70B": 5,
        "mistralai/Mistral-Small-24B": 1.5,
        "google/gemma-3-27b-it": 3,
        "BAAI/bge-m3": 0.5,
        "openai/whisper-large-v3": 1,
    }
    found = {name: standin(name, rate=60, wake_s=wake) for name, wake in wake_s.items()}
    for model in found.values():
        model |= {"group": "gpu 0", "max_in_flight": 12}
    for name in ("BAAI/bge-m3", "openai/whisper-large-v3"):
        found[name]["group"] = "gpu 1"
    found["mistralai/Mistral-Small-24B"]["wake"] += (
        "; if [ -e broken ]; then rm broken; echo 'CUDA error: out of memory' >&2; exit 1; fi"
    )
    return found


def ask_all(stage: Stage, stop: threading.Event) -> None:
    """Random requests for all models, in waves."""
    rnd = random.Random(SEED)
    while not stop.wait(rnd.expovariate(1.9)):
        wave = 1 + 3 * (int(time.monotonic() / 17) % 2)
        name = rnd.choices(
            list(WEIGHTS), [w * (wave if i % 2 else 1) for i, w in enumerate(WEIGHTS.values())]
        )[0]
        usage = {"include_usage": True}
        stage.ask(name, stream=True, max_tokens=rnd.randrange(30, 400), stream_options=usage)


def shoot(
    browser: Browser, stage: Stage, name: str, *, width: int, scheme: str, full: bool = False
) -> Page:
    """One picture of the page as it opens."""
    watched = Watched(
        browser,
        viewport={"width": width, "height": 1000},
        color_scheme=scheme,
        device_scale_factor=1.5,
    )
    watched.context.set_default_timeout(PATIENCE_MS)
    page = watched.open(stage.url)
    page.select_option("#span", "60" if width < 500 else "300")
    page.wait_for_timeout(1500)
    save(page, name, full=full)
    return page


def save(page: Page, name: str, *, full: bool = False) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=full)


def chat(page: Page) -> None:
    """A conversation in the playground."""
    page.select_option("#chat-model", "meta-llama/Llama-3.3-70B")
    page.locator(".system summary").click()
    page.fill("#chat-system", "Answer in one sentence.")
    page.fill("#chat-tokens", "90")
    page.fill("#chat-text", "Why did my request wait?")
    page.press("#chat-text", "Enter")
    page.wait_for_selector("#chat-send:visible", timeout=90_000)


def explain(page: Page) -> None:
    """The request that has waited longest of those that have ended, explained."""
    page.check("#requests-ended")
    page.fill("#requests-search", "ended")
    page.evaluate(
        """() => {
          const secs = (row) => {
            const [, m, s] = row.cells[4].textContent.match(/^(?:(\\d+) m )?([\\d.]+) s$/) ?? [0, 0, 0];
            return 60 * (m ?? 0) + Number(s);
          };
          const rows = [...document.querySelectorAll("#requests-table tr.ended")];
          rows.sort((a, b) => secs(b) - secs(a))[0].querySelector("button").click();
        }"""
    )


NVIDIA_SMI = """#!/bin/sh
echo '0, NVIDIA H100 80GB HBM3, 68121, 81559, 83'
echo '1, NVIDIA H100 80GB HBM3, 9214, 81559, 12'
"""


def show_gpus(folder: Path) -> None:
    """Put an nvidia-smi for this machine, which has none, on the path."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}:{os.environ['PATH']}"


def main() -> None:
    """Make all of them."""
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        show_gpus(Path(folder))
        (Path(folder) / "broken").touch()
        every = models()
        with staged(
            Path(folder), *every, models=every, on_shutdown="sleep", shutdown_grace_secs=5
        ) as stage:
            stop = threading.Event()
            asking = threading.Thread(target=ask_all, args=(stage, stop))
            asking.start()
            try:
                time.sleep(BUSY_S)
                shoot(browser, stage, "dark", width=1440, scheme="dark").close()
                shoot(browser, stage, "phone", width=375, scheme="light", full=True).close()
                page = shoot(browser, stage, "light", width=1440, scheme="light")
                chat(page)
                page.evaluate("scrollTo(0, 0)")
                save(page, "whole", full=True)
                explain(page)
                page.wait_for_timeout(500)
                save(page, "why")
                page.locator("#detail .plain-list button").last.click()
                page.locator("#detail summary").last.click()
                page.wait_for_timeout(500)
                save(page, "switch")
            finally:
                stop.set()
                asking.join()


if __name__ == "__main__":
    main()
