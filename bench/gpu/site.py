"""A folder with a config of two vLLM servers, and llmux that serves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bench.gpu.options import Options
from bench.processes import CannotRun, end, free_ports
from llmux.config.recipes import find_recipe

NAMES = ("a", "b")
"""Names of the two models in the config."""

START_S = 60.0
"""Longest wait until llmux serves."""

END_S = 120.0
"""Longest time of the script that stops a server."""

PROMPT = "Write one sentence about the sea."
TOKENS = 16


class Asked(msgspec.Struct, frozen=True):
    """One streamed request.

    Attributes:
        first_token_s: Seconds from sending it to the first piece of text.
        first_token_at: Unix time of that piece.
    """

    first_token_s: float
    first_token_at: float


class Site:
    """A folder with a config of two models that share a GPU.

    Attributes:
        ports: Ports of the models' servers, by name.
    """

    def __init__(self, folder: Path, options: Options, level: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._options = options
        self._port, *ports = free_ports(3)
        self.ports = dict(zip(NAMES, ports, strict=True))
        self._config = self.folder / "llmux.json"
        self._config.write_text(json.dumps(self._settings(level), indent=2))
        self._url = f"http://127.0.0.1:{self._port}"

    def _settings(self, level: str) -> dict[str, Any]:
        given = {"args": self._options.args, "program": self._options.vllm}
        given |= {"level": level if level == "stop" else int(level)}  # type: ignore[dict-item]
        models = {
            name: {
                "recipe": "vllm-sleep",
                "port": self.ports[name],
                "hook_timeouts": {"wake": self._options.wake_s, "sleep": 300},
                "with": {"model": model, **given},
            }
            for name, model in zip(NAMES, self._options.models, strict=True)
        }
        # A switch begins with the request for it: no policy is measured here.
        policy = {"name": "fifo", "min_active_secs": 0}
        served = {"host": "127.0.0.1", "port": self._port, "state_dir": "state"}
        return {**served, "policy": policy, "models": models}

    # ---- llmux ----

    @contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        """Run llmux; the servers stay when it ends."""
        command = [sys.executable, "-m", "llmux", "-c", str(self._config)]
        log = self.folder / "llmux.log"
        with (
            log.open("ab") as output,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as it,
        ):
            try:
                with httpx.Client(
                    base_url=self._url, timeout=self._options.wake_s + 60, trust_env=False
                ) as client:
                    self._wait_serving(it, client, log)
                    yield client
            finally:
                end(it)

    def _wait_serving(
        self, process: subprocess.Popen[bytes], client: httpx.Client, log: Path
    ) -> None:
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at and process.poll() is None:
            try:
                client.get("/health")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
        raise CannotRun(f"llmux does not serve: {log.read_text(errors='replace')[-1000:]}")

    def validate(self, name: str) -> list[dict[str, Any]]:
        """Run `llmux validate`; return its steps. llmux must not serve. Raises CannotRun."""
        command = [sys.executable, "-m", "llmux", "validate", "-c", str(self._config), "--json"]
        command += ["--cycles", str(self._options.cycles), "--prompt", PROMPT, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            steps: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
        except (ValueError, KeyError):
            raise CannotRun(f"llmux validate {name}: {done.stderr.strip()[-1000:]}") from None
        return steps

    # ---- The servers ----

    def stop_servers(self) -> None:
        """Stop both, at whatever level they sleep."""
        script = find_recipe("vllm-sleep", self.folder).folder / "sleep.sh"
        for name, port in self.ports.items():
            about = {"LLMUX_MODEL": name, "LLMUX_PORT": str(port)}
            state = {"LLMUX_STATE_DIR": str(self.folder / "state")}
            with (self.folder / "stop.log").open("ab") as log:
                subprocess.run(
                    ["sh", str(script), "stop"],
                    env={**os.environ, **about, **state},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=END_S,
                    check=False,
                )


def ask(client: httpx.Client, name: str) -> Asked:
    """Ask for some tokens, streamed, and read all of them. Raises CannotRun."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    began, found = time.monotonic(), None
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise CannotRun(f"{name}: HTTP {answer.status_code}: {answer.read()[:1000]!r}")
            for line in answer.iter_lines():
                if found is None and has_text(line):
                    found = Asked(time.monotonic() - began, time.time())
    except httpx.HTTPError as error:
        raise CannotRun(f"{name}: {error!r}") from None
    if found is None:
        raise CannotRun(f"{name}: the answer has no text")
    return found


def has_text(line: str) -> bool:
    """Whether a line of an event stream has a piece of text. Raises CannotRun for an error."""
    if not line.startswith("data:") or line.endswith("[DONE]"):
        return False
    event = json.loads(line.removeprefix("data:"))
    if "error" in event:
        raise CannotRun(f"the stream broke: {line[:500]}")
    return any(
        choice["delta"].get("content") or choice["delta"].get("reasoning")
        for choice in event["choices"]
    )
