"""What must be there before anything is measured: each lack is told, and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.memory import available_mib, gpus, used_mib
from bench.gpu.options import Options
from bench.processes import CannotRun

VERSION_S = 600.0
"""Time limit of `vllm --version`, which imports torch."""

BUSY_SHARE = 0.05
"""Share of the GPUs' memory from which something else is in the way."""

MIB = 1 << 20


def lacks(options: Options) -> Iterator[str]:
    """Yield what is missing, in words, without starting a server."""
    if not Path("/proc/self/stat").exists():
        yield "the hooks of vllm-sleep need Linux (/proc)"
    for tool in ("curl", "setsid"):
        if shutil.which(tool) is None:
            yield f"{tool} is not on the PATH; the hooks of vllm-sleep need it"
    if shutil.which(options.vllm) is None:
        yield f"{options.vllm}: no such program; install vLLM, or give its path with --vllm"
    if options.has_gpu:
        yield from _lacks_of_gpu()
    elif sleepers := [level for level in options.levels if level != "stop"]:
        yield (
            f"level {' and '.join(sleepers)}: vLLM has sleep mode on GPUs only; "
            "give --level stop with --without-gpu"
        )
    for model in options.models:
        yield from _lacks_of_model(model)
    if "1" in options.levels:
        yield from _lacks_of_memory(options)


def _lacks_of_gpu() -> Iterator[str]:
    try:
        total, used = sum(gpu.total_mib for gpu in gpus()), used_mib()
    except CannotRun as error:
        yield f"{error} (--without-gpu, if there is none)"
        return
    if used > BUSY_SHARE * total:
        yield (
            f"{used:,} of {total:,} MiB of GPU memory are in use; end what holds them "
            "(nvidia-smi shows it), or the figures mean nothing"
        )


def _lacks_of_model(model: str) -> Iterator[str]:
    if _is_folder(model):
        if not (Path(model) / "config.json").is_file():
            yield f"{model}: no model there (no config.json)"
    elif os.environ.get("HF_HUB_OFFLINE") == "1" and not _cached(model).is_dir():
        yield f"{model}: not in {_cached(model).parent}, and HF_HUB_OFFLINE=1 forbids a download"


def _lacks_of_memory(options: Options) -> Iterator[str]:
    """Level 1 keeps the weights of a model that sleeps in the machine's memory."""
    folders = [Path(model) for model in options.models if _is_folder(model)]
    sizes = [sum(file.stat().st_size for file in each.glob("*.safetensors")) for each in folders]
    if sum(sizes) > available_mib() * MIB:
        yield (
            f"level 1 moves {sum(sizes) // MIB:,} MiB of weights to the machine's memory, "
            f"of which {available_mib():,} MiB are free"
        )


def _is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or Path(model).is_dir()


def _cached(model: str) -> Path:
    """Folder of a public model in Hugging Face's cache."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return hub / f"models--{model.replace('/', '--')}"


def vllm_version(program: str) -> str:
    """Return the version of vLLM. Raises CannotRun."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"{program} --version: {error}") from None
    if done.returncode or not done.stdout.strip():
        raise CannotRun(f"{program} --version failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip().splitlines()[-1]
