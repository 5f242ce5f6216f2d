"""Behaves as `vllm serve` does with respect to sleeping, its traps included.

After vLLM's `entrypoints/serve/dev/*/api_router.py`, `v1/executor/abstract.py` (which tags sleep)
and its issues 15483 (a request to a sleeping server), 29341 (level 2 without a reload) and 45520
(sleep with requests running).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

from tests.hooks.standins.http import Server, chat_answer, chat_events
from tests.hooks.standins.shared import has_fault, hold, leave, option, record, say

MIB = {"context": 2, "weights": 50, "kv_cache": 30}


class Vllm(Server):
    unrecorded = frozenset({"/health", "/is_sleeping"})

    def __init__(self, port: int, model: str) -> None:
        super().__init__(port)
        self.owner = f"vllm-{port}"
        self.model = model
        self.is_dev = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        self.asleep: set[str] = set()
        self.weights_lost = False
        self.engine_died = False
        self.running = 0
        # The engine is a process of its own.
        self.engine = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
        self.allocate()

    def allocate(self) -> None:
        if not hold(self.owner, sum(mib for part, mib in MIB.items() if part not in self.asleep)):
            self.crash("torch.OutOfMemoryError: CUDA out of memory")

    def crash(self, why: str) -> None:
        say(f"ERROR {why}")
        if not has_fault("leaves_engine"):
            self.engine.kill()
        leave(1, self.owner)

    def die_soon(self) -> None:
        """The engine is dead; the API server notices, and ends a moment later."""
        self.engine_died = True

        def later() -> None:
            time.sleep(0.3)
            self.crash("EngineCore encountered an issue")

        threading.Thread(target=later, daemon=True).start()

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        if path == "/health":
            return (503 if self.engine_died else 200), None
        if path == "/v1/chat/completions":
            return self.chat(asked)
        if not self.is_dev:
            return 404, {"detail": "Not Found"}
        if self.engine_died:
            return 500, {"error": "EngineDeadError"}
        with self.lock:
            return self.steer(path, query, asked)

    def chat(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if self.asleep:
            self.crash("CUDA error: an illegal memory access was encountered")
        self.running += 1
        time.sleep(asked.get("seconds", 0))
        self.running -= 1
        text = "!!!!!!!!" if self.weights_lost else f"I am {self.model}"
        return 200, (chat_events if asked.get("stream") else chat_answer)(self.model, text)

    def steer(
        self, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        if path == "/is_sleeping":
            return 200, {"is_sleeping": bool(self.asleep)}
        if has_fault(path):
            return 500, {"error": {"message": "Internal Server Error"}}
        if path == "/sleep":
            if has_fault("sleep_hangs"):
                time.sleep(60)
            if self.running:
                self.die_soon()
            elif not self.asleep:  # else: "Executor is already sleeping."
                self.asleep = {"weights", "kv_cache"}
                self.weights_lost = query.get("level") == ["2"]
        elif path == "/wake_up":
            tags = query.get("tags")
            if tags is None and len(self.asleep) == 1:
                self.crash("CUDA error: mapping failed")  # one half is there already
            if not (tags and set(tags) - self.asleep):  # else: "Tag ... is not in sleeping tags"
                self.asleep -= set(tags or self.asleep)
            if has_fault("half_awake"):
                record("half awake")
                time.sleep(60)
        elif path == "/collective_rpc" and asked == {"method": "reload_weights"}:
            if "weights" in self.asleep:
                self.crash("CUDA error: an illegal memory access was encountered")
            self.weights_lost = False
            return 200, {"results": [None]}
        elif path != "/reset_prefix_cache":
            return 404, {"detail": "Not Found"}
        self.allocate()
        return 200, None

    def end(self, _number: int, _frame: FrameType | None) -> None:
        self.engine.kill()
        leave(0, self.owner)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write("0.0.0\n")
        return
    assert arguments[0] == "serve", arguments
    port = int(option(arguments, "--port"))
    record(f"vllm {' '.join(arguments)}")
    say(f"INFO starting {arguments[1]}")
    if has_fault("ignores_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if has_fault("start_fails"):
        sys.exit("ValueError: Free memory on device is less than desired GPU memory utilization")
    if has_fault("no_sleep_mode") and "--enable-sleep-mode" in arguments:  # as on a CPU
        sys.exit("pydantic: Value error, Sleep mode is not supported on current platform.")
    if has_fault("start_hangs"):
        time.sleep(60)
    server = Vllm(port, option(arguments, "--served-model-name", arguments[1]))
    if not has_fault("ignores_term"):
        signal.signal(signal.SIGTERM, server.end)
    server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main()
