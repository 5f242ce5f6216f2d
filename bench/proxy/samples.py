"""Samples: what each turn of each contestant measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.native import Load


@dataclass(frozen=True)
class Sample:
    """One contestant's turn at one workload.

    Attributes:
        cpu_us: CPU time of its process, threads and children, in microseconds.
        instructions: Of the same; None where the machine does not count them.
    """

    load: Load
    cpu_us: float
    instructions: float | None = None


Round = Mapping[str, Mapping[str, Sample]]
"""By workload, by contestant."""
