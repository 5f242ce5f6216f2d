"""The workloads, and the table's rows: one figure of one workload each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.native import Workload
from bench.proxy.samples import Sample

WORKLOADS: Mapping[str, Workload] = {
    "posts": Workload(connections=16, seconds=2),
    "single": Workload(connections=1, seconds=1),
    "saturated": Workload(connections=32, seconds=2, chunks=200),
    # One send() carries 16 chunks, so that the backend is never the limit.
    "bulk": Workload(connections=32, seconds=2, chunks=200, burst=16),
    # 256 streams of 50 tokens/s: the output of one GPU.
    "paced": Workload(connections=256, seconds=5, chunks=100, interval_us=20_000),
    "crowd": Workload(connections=1000, seconds=5, chunks=50, interval_us=40_000),
}

Value = Callable[[Sample, Sample], float | None]
"""Computes a figure from a contestant's sample and the direct one."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    workload: str
    value: Value


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value / base, or None where either is missing or the base is 0."""
    return value / base if value is not None and base else None


def thousands(count: float | None, base: float) -> float | None:
    """Return count / base in thousands, or None where nothing was counted."""
    return ratio(count, 1000 * base)


def share_delivered(sample: Sample, direct: Sample) -> float | None:
    """Chunks per second, as a share of what clients get without a proxy."""
    return ratio(sample.load.chunks / sample.load.seconds, direct.load.chunks / direct.load.seconds)


ROWS = (
    Row("requests", "requests/s, 16 connections", "posts",
        lambda s, _: s.load.requests / s.load.seconds),
    Row("request_cpu", "CPU us per request", "posts",
        lambda s, _: ratio(s.cpu_us, s.load.requests)),
    Row("request_instructions", "thousand instructions per request", "posts",
        lambda s, _: thousands(s.instructions, s.load.requests)),
    Row("chunks", "chunks/s, 32 streams as fast as they go", "saturated",
        lambda s, _: s.load.chunks / s.load.seconds),
    Row("chunk_cpu", "CPU us per chunk, as fast as they go", "saturated",
        lambda s, _: ratio(s.cpu_us, s.load.chunks)),
    Row("chunk_instructions", "thousand instructions per chunk, as fast as they go", "saturated",
        lambda s, _: thousands(s.instructions, s.load.chunks)),
    Row("bulk", "chunks/s, the same, 16 with one send()", "bulk",
        lambda s, _: s.load.chunks / s.load.seconds),
    Row("bulk_cpu", "CPU us per chunk, 16 with one send()", "bulk",
        lambda s, _: ratio(s.cpu_us, s.load.chunks)),
    Row("delivered", "share delivered, 256 streams x 50 chunks/s", "paced", share_delivered),
    Row("paced_cpu", "CPU us per chunk, 256 x 50/s", "paced",
        lambda s, _: ratio(s.cpu_us, s.load.chunks)),
    Row("paced_instructions", "thousand instructions per chunk, 256 x 50/s", "paced",
        lambda s, _: thousands(s.instructions, s.load.chunks)),
    Row("first_p50", "time to first chunk p50, ms", "paced",
        lambda s, _: ratio(s.load.first_chunk_p50_us, 1000)),
    Row("first_p99", "time to first chunk p99, ms", "paced",
        lambda s, _: ratio(s.load.first_chunk_p99_us, 1000)),
    Row("gap_p99", "gap between chunks p99, ms", "paced",
        lambda s, _: ratio(s.load.gap_p99_us, 1000)),
    Row("crowd_delivered", "share delivered, 1,000 streams x 25 chunks/s", "crowd",
        share_delivered),
    Row("crowd_cpu", "CPU us per chunk, 1,000 x 25/s", "crowd",
        lambda s, _: ratio(s.cpu_us, s.load.chunks)),
    Row("crowd_gap_p99", "gap between chunks p99, ms, 1,000 x 25/s", "crowd",
        lambda s, _: ratio(s.load.gap_p99_us, 1000)),
    Row("latency", "latency p50, 1 connection, us", "single",
        lambda s, _: s.load.latency_p50_us),
    Row("added", "  added to direct, us", "single",
        lambda s, direct: (s.load.latency_p50_us or 0) - (direct.load.latency_p50_us or 0)),
)  # fmt: skip
