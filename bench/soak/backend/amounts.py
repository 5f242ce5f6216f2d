"""How much there is where models share memory; see `bench.soak.sharing`."""

from __future__ import annotations

GPU, RAM = 100, 40
"""Amounts of each GPU and of the RAM of a group."""
