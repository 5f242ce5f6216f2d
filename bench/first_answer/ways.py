"""The ways to a first answer that are compared: each of llmux, llama-swap and Ollama."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.first_answer.journey import FIRST, PATIENCE_S, SECOND, Journey
from bench.processes import CannotRun, free_port

ROOT = Path(__file__).parent.parent.parent

LLAMA_SWAP = """models:
  qwen:
    cmd: llama-server -m {first} --port ${{PORT}}
  mistral:
    cmd: llama-server -m {second} --port ${{PORT}}
"""
"""As its README's first example has it."""


@dataclass(frozen=True)
class Programs:
    """What the user has installed.

    Attributes:
        llmux: Folder of the command of llmux.
        models: Two files, for `FIRST` and `SECOND`.
        llama_server: The C++ server.
        llama_swap: llama-swap, if there is one.
        ollama: Ollama, if there is one.
    """

    llmux: Path
    models: tuple[Path, Path]
    llama_server: Path
    llama_swap: Path | None = None
    ollama: Path | None = None

    @property
    def path(self) -> list[Path]:
        """Their folders."""
        found = [self.llama_server, self.llama_swap, self.ollama]
        return [self.llmux, *(program.parent for program in found if program)]


def by_init(recipe: str, changes: Mapping[str, str]) -> Callable[[Journey, Programs], None]:
    """`llmux init RECIPE`, some changes to its config, `llmux`."""

    def way(journey: Journey, _: Programs) -> None:
        journey.run("llmux", "init", recipe)
        journey.edit("llmux.yaml", changes)
        _serve(journey)

    return way


def _serve(journey: Journey) -> None:
    """`llmux`, and both requests. The port is only given since others use this machine."""
    journey.config("llmux.yaml")
    port = free_port()
    with journey.serving("llmux", "--port", str(port)):
        journey.ask_both(port)


def by_process(journey: Journey, programs: Programs) -> None:
    """The recipe for a server that is one command."""
    first, second = map(str, programs.models)
    by_init(
        "process",
        {"qwen.gguf --port": f"{first} --port", "mistral.gguf --port": f"{second} --port"},
    )(journey, programs)


def by_llama_cpp(journey: Journey, programs: Programs) -> None:
    """The recipe for llama.cpp."""
    first, second = map(str, programs.models)
    changes = {"model: qwen.gguf": f"model: {first}", "model: mistral.gguf": f"model: {second}"}
    by_init("llama-cpp", changes)(journey, programs)


def by_import(journey: Journey, programs: Programs) -> None:
    """The config of a llama-swap that the user has."""
    first, second = programs.models
    (journey.folder / "config.yaml").write_text(LLAMA_SWAP.format(first=first, second=second))
    journey.run("llmux", "import", "llama-swap", "config.yaml", "-o", "llmux.yaml")
    _serve(journey)


def by_llama_swap(journey: Journey, programs: Programs) -> None:
    """llama-swap itself."""
    first, second = programs.models
    journey.write("config.yaml", LLAMA_SWAP.format(first=first, second=second))
    journey.config("config.yaml")
    port = free_port()
    with journey.serving("llama-swap", "--config", "config.yaml", "--listen", f"127.0.0.1:{port}"):
        journey.ask_both(port)


def by_ollama(journey: Journey, programs: Programs) -> None:
    """Ollama itself, with files that the user has; `ollama pull` needs a network."""
    port = free_port()
    journey.variables = ollama_variables(journey.folder, port)
    with journey.serving("ollama", "serve"):
        _wait_listening(port)
        for name, file in zip((FIRST, SECOND), programs.models, strict=True):
            journey.write(f"{name}.modelfile", f"FROM {file}\n")
            journey.run("ollama", "create", name, "-f", f"{name}.modelfile")
        journey.lines = journey.edited
        journey.ask_both(port)


def by_ollama_import(journey: Journey, programs: Programs) -> None:
    """An llmux in front of an Ollama that has the models and runs."""
    port = free_port()
    before = Journey(journey.folder, journey.path, variables=ollama_variables(journey.folder, port))
    with before.serving("ollama", "serve"):
        _wait_listening(port)
        for name, file in zip((FIRST, SECOND), programs.models, strict=True):
            before.write(f"{name}.modelfile", f"FROM {file}\n")
            before.run("ollama", "create", name, "-f", f"{name}.modelfile")
        journey.started = time.monotonic()
        url = f"http://127.0.0.1:{port}"
        journey.run("llmux", "import", "ollama", url, "-o", "llmux.yaml")
        _serve(journey)


def ollama_variables(folder: Path, port: int) -> dict[str, str]:
    """Settings of an Ollama with a store of its own, for one model at a time."""
    return {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "store"),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NO_CLOUD": "1",
    }


def _wait_listening(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        time.sleep(0.02)
    raise CannotRun("Ollama does not listen")


WAYS: dict[str, Callable[[Journey, Programs], None]] = {
    "llmux, recipe process": by_process,
    "llmux, recipe llama-cpp": by_llama_cpp,
    "llmux, imported from llama-swap": by_import,
    "llama-swap": by_llama_swap,
    "llmux, imported from Ollama": by_ollama_import,
    "Ollama": by_ollama,
}


def travel(way: str, programs: Programs, folder: Path) -> Journey:
    """Go a way once, in an empty folder. Raises CannotRun."""
    journey = Journey(folder, programs.path)
    WAYS[way](journey, programs)
    return journey


def install_wheel(folder: Path) -> Path:
    """Build the wheel and install it into an empty environment; return its folder of commands.

    Raises:
        CannotRun: The package index cannot be reached, or the build failed.
    """
    venv = folder / "venv"
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "pip"), "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)],
        [str(venv / "bin" / "pip"), "install", "-q", "--find-links", str(folder), "llmux-proxy"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun(f"{shlex.join(command)}: {done.stderr[-500:]}")
    return venv / "bin"
