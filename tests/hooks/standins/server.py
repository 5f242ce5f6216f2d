"""A model server that only answers: `server --port PORT --name NAME [--cuda]`.

It holds the fake GPU while it runs; with `--cuda` it does so as two processes that `cuda_checkpoint`
can suspend.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from tests.hooks.standins.http import Server, chat_answer
from tests.hooks.standins.shared import HOME, has_fault, hold, leave, option, say


class ModelServer(Server):
    unrecorded = frozenset({"/health", "/v1/models", "/v1/chat/completions"})

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port)
        self.name = name
        self.born = time.monotonic()

    def is_frozen(self) -> bool:
        """Whether its CUDA state is not running; see `cuda_checkpoint`."""
        state = HOME / f"cuda-{os.getpid()}"
        return state.exists() and not state.read_text().endswith("running")

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        if path in ("/health", "/v1/models"):
            return (503 if has_fault("never_ready") else 200), None
        time.sleep(asked.get("seconds", 0))
        while self.is_frozen():
            time.sleep(0.01)
        return 200, chat_answer(self.name, f"I am {self.name}")


def use_cuda(name: str) -> None:
    """Be seen by `cuda_checkpoint`, with a worker that is a process of its own."""
    worker = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    for pid, owner in ((os.getpid(), name), (worker.pid, f"{name}-worker")):
        (HOME / f"cuda-{pid}").write_text(f"{owner} running")

    def end(*_: Any) -> None:
        worker.kill()
        hold(f"{name}-worker", 0)
        leave(0, name)

    signal.signal(signal.SIGTERM, end)


def main(arguments: list[str]) -> None:
    port, name = (
        int(option(arguments, "--port")),
        option(arguments, "--name") or option(arguments, "--alias"),
    )
    if has_fault("ignores_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: leave(0, name))
    if has_fault("dies"):
        say(f"ERROR {name} cannot load its model")
        sys.exit(1)
    has_cuda = "--cuda" in arguments
    takes = {name: 30, f"{name}-worker": 30} if has_cuda else {name: 60}
    if not all(hold(owner, mib) for owner, mib in takes.items()):
        say("ERROR CUDA out of memory")
        sys.exit(1)
    if has_cuda:
        use_cuda(name)
    ModelServer(port, name).serve_forever(poll_interval=60)


if __name__ == "__main__":
    main(sys.argv[1:])
