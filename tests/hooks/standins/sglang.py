"""Behaves as `python -m sglang.launch_server` does with respect to releasing its memory.

After SGLang's `entrypoints/http_server.py` (which answers /health by generating a token) and
`scheduler_update_weights_mixin.py` (which asserts that nothing runs, and removes a tag that must be
there), and its issues 6367 (weights are not kept) and 24123 (the assertions end the server).
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

from tests.hooks.standins.http import Server, chat_answer
from tests.hooks.standins.shared import has_fault, hold, leave, option, record, say

AWAKE, ASLEEP = 80, 2


class Sglang(Server):
    unrecorded = frozenset({"/health", "/get_model_info"})

    def __init__(self, port: int, arguments: list[str]) -> None:
        super().__init__(port)
        self.owner = f"sglang-{port}"
        self.path = option(arguments, "--model-path")
        self.model = option(arguments, "--served-model-name", self.path)
        self.has_saver = "--enable-memory-saver" in arguments
        self.keeps_weights = "--enable-weights-cpu-backup" in arguments
        self.released = self.weights_lost = False
        self.running = 0
        self.ready_at = time.monotonic() + 0.1
        self.take(AWAKE)

    def take(self, mib: int) -> None:
        if not hold(self.owner, mib):
            self.crash("torch.OutOfMemoryError: CUDA out of memory")

    def crash(self, why: str) -> None:
        say(f"ERROR {why}")
        leave(1, self.owner)

    def end(self, _number: int, _frame: FrameType | None) -> None:
        leave(0, self.owner)

    def generate(self, seconds: float = 0) -> str:
        if self.released:
            self.crash("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")
        self.running += 1
        time.sleep(seconds)
        self.running -= 1
        return "!!!!!!!!" if self.weights_lost else f"I am {self.model}"

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        if path == "/get_model_info":
            return 200, {"model_path": self.path}
        if path == "/health":
            if time.monotonic() < self.ready_at:
                return 503, None
            self.generate()
            return 200, None
        if path == "/v1/chat/completions":
            return 200, chat_answer(self.model, self.generate(asked.get("seconds", 0)))
        if has_fault(path):
            return 400, {"success": False, "message": "it went wrong"}
        if path == "/release_memory_occupation":
            if has_fault("release_hangs"):
                time.sleep(60)
            if self.running:
                self.crash(
                    "AssertionError: release_memory_occupation should be called only when ..."
                )
            if self.released:
                self.crash("torch_memory_saver: cannot pause what is paused")
            self.released = True
            self.take(ASLEEP if self.has_saver else AWAKE)
            return 200, None
        if path == "/resume_memory_occupation":
            if not self.released:
                self.crash("KeyError: 'weights'")
            self.released, self.weights_lost = False, not self.keeps_weights
            self.take(AWAKE)
            if has_fault("resume_hangs"):
                time.sleep(60)
            return 200, None
        if path == "/update_weights_from_disk":
            if asked["model_path"] != self.path:
                return 400, {"success": False, "message": "Failed to get model config"}
            self.weights_lost = False
            return 200, {"success": True, "message": "Succeeded to update model weights."}
        return 404, {"detail": "Not Found"}


def main(arguments: list[str]) -> None:
    assert arguments[:2] == ["-m", "sglang.launch_server"], arguments
    record(f"sglang {' '.join(arguments[2:])}")
    if has_fault("start_fails"):
        sys.exit("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.")
    if has_fault("start_hangs"):
        time.sleep(60)
    server = Sglang(int(option(arguments, "--port")), arguments)
    signal.signal(signal.SIGTERM, server.end)
    server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main(sys.argv[1:])
