"""Behaves as `ollama serve` does with respect to loading and unloading.

After Ollama's `server/routes.go` (GenerateHandler, EmbedHandler, PsHandler) and `server/sched.go`
(expireRunner): an unload is answered at once, and done when the last request has ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from tests.hooks.standins.http import Server, chat_answer
from tests.hooks.standins.shared import has_fault, hold, record

PULLED = {"llama3.2:3b", "mistral:7b-instruct", "nomic-embed-text:latest", "qwen:latest"}
MIB = 60


class Ollama(Server):
    unrecorded = frozenset({"/api/ps"})

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.keeps: dict[str, float] = {}  # what is loaded, and for how long
        self.running: dict[str, int] = {}
        self.has_left = False

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        if has_fault("broken"):
            return 500, {"error": "broken"}
        if path == "/api/ps":
            return 200, {"models": [{"name": name, "size_vram": MIB} for name in self.keeps]}
        name = str(asked["model"]).lower()
        name = name if ":" in name else f"{name}:latest"
        if name not in PULLED:
            return 404, {"error": f"model '{asked['model']}' not found"}
        if path == "/api/generate" and not asked.get("prompt") and asked.get("keep_alive") == 0:
            self.expire(name)
            return 200, {"model": asked["model"], "done": True, "done_reason": "unload"}
        if path == "/api/generate" and name.startswith("nomic"):
            return 400, {"error": f'"{asked["model"]}" does not support generate'}
        if not self.load(name, asked.get("keep_alive")):
            return 500, {"error": "model requires more system memory than is available"}
        if path == "/v1/chat/completions":
            return 200, self.chat(name, asked)
        if has_fault("leaves_once") and not self.has_left:
            self.has_left = True  # for an unload that was asked for before
            del self.keeps[name]
            hold(name, 0)
        return 200, {"model": asked["model"], "done": True, "done_reason": "load"}

    def load(self, name: str, keep_alive: float | None) -> bool:
        with self.lock:
            if has_fault("loads_for_ever"):
                time.sleep(60)
            if name not in self.keeps and (has_fault("load_fails") or not hold(name, MIB)):
                return False
            self.keeps[name] = keep_alive if keep_alive is not None else self.keeps.get(name, 300)
            return True

    def chat(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        self.running[name] = self.running.get(name, 0) + 1
        time.sleep(asked.get("seconds", 0))
        self.running[name] -= 1
        return chat_answer(asked["model"], f"I am {name}")

    def expire(self, name: str) -> None:
        def unload() -> None:
            time.sleep(0.1)
            while self.running.get(name):
                time.sleep(0.01)
            self.keeps.pop(name, None)
            hold(name, 0)

        if name in self.keeps and not has_fault("stuck"):
            threading.Thread(target=unload, daemon=True).start()


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"]
    record("ollama serve")
    Ollama(int(os.environ["OLLAMA_HOST"].rpartition(":")[2])).serve_forever(poll_interval=60)
