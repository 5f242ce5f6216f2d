"""Samples: what each turn of each contestant measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.native import Load


@dataclass(frozen=True)
class Sample:
    """One contestant's turn at one workload."""

    load: Load
    cpu_us: float


Round = Mapping[str, Mapping[str, Sample]]
"""By workload, by contestant."""
