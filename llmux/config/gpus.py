"""The resources that stand for the memory of GPUs, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_GPU = re.compile(r"gpu(0|[1-9][0-9]{0,3})")


def gpu_indexes(resources: Iterable[str]) -> dict[str, int]:
    """Return the resources `gpu0`, `gpu1` and so on, with nvidia-smi's index of each GPU."""
    return {name: int(gpu[1]) for name in resources if (gpu := _GPU.fullmatch(name))}
