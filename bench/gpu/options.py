"""What is measured, as the command line gives it."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODELS = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct")
"""Small, public, and without a licence to accept."""

DEFAULT_ARGS = "--gpu-memory-utilization 0.85 --max-model-len 4096"
LEVELS = ("1", "2", "stop")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        models: Two models for `vllm serve`.
        levels: Levels of the recipe vllm-sleep.
        args: Options of `vllm serve`.
        vllm: The program.
        repetitions: Number of switches from each model to the other, at each level.
        cycles: Number of sleeps of each `llmux validate`; 0 for none.
        wake_s: Time limit of a start, in seconds.
        has_gpu: Whether nvidia-smi is asked.
        out: Folder for the results.
    """

    models: tuple[str, str]
    levels: tuple[str, ...] = ("1", "2")
    args: str = DEFAULT_ARGS
    vllm: str = "vllm"
    repetitions: int = 20
    cycles: int = 1
    wake_s: int = 1800
    has_gpu: bool = True
    out: Path = Path("gpu-results")


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line; ends the process if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Switch two vLLM servers on a GPU, and measure. bench/gpu/README.md explains.",
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="give it twice; a folder or a public name"
    )
    parser.add_argument(
        "--level", action="append", choices=LEVELS, help="may be given again; default: 1 and 2"
    )
    parser.add_argument("--args", default=DEFAULT_ARGS, help="options of vllm serve [%(default)s]")
    parser.add_argument("--vllm", default=os.environ.get("VLLM", "vllm"), help="the program")
    parser.add_argument("--repetitions", type=int, default=20, help="switches each way [20]")
    parser.add_argument("--cycles", type=int, default=1, help="of llmux validate; 0: none [1]")
    parser.add_argument("--wake-secs", type=int, default=1800, help="limit of a start [1800]")
    parser.add_argument(
        "--without-gpu", action="store_true", help="ask no nvidia-smi; only --level stop works"
    )
    parser.add_argument("--out", type=Path, help="a new folder [gpu-results/TIME]")
    given = parser.parse_args(arguments)
    models = tuple(given.model or DEFAULT_MODELS)
    if len(models) != 2 or len(set(models)) != 2:
        parser.error("give --model twice, for two different models, or not at all")
    if given.repetitions < 1 or given.cycles < 0 or given.wake_secs < 30:
        parser.error("--repetitions must be at least 1, --cycles 0, and --wake-secs 30")
    if given.out and given.out.exists() and any(given.out.iterdir()):
        parser.error(f"--out: {given.out} is not empty")
    try:
        shlex.split(given.args)
    except ValueError as error:
        parser.error(f"--args: {error}")
    return Options(
        models=(models[0], models[1]),
        levels=tuple(dict.fromkeys(given.level or ("1", "2"))),
        args=given.args,
        vllm=given.vllm,
        repetitions=given.repetitions,
        cycles=given.cycles,
        wake_s=given.wake_secs,
        has_gpu=not given.without_gpu,
        out=given.out or Path("gpu-results") / time.strftime("%Y-%m-%d-%H%M%S"),
    )
