"""Recorded traffic, replayed at each switch cost and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from bench.policy_cases.setup import SLOTS, SWITCHES_S, Figures, fleet
from bench.policy_cases.waits import wait_figures
from llmux.simulate import Arrival, simulate
from llmux.simulate.arrivals import read_rows, seconds

TRACES: Mapping[str, Sequence[str]] = {
    "arena": ("prism_vtc_arena27.csv",),
    "servegen": ("servegen_4models_24h_load0.3_seed0.csv",),
    "azure": ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv"),
}
"""LMSYS Chatbot Arena as Prism samples it (27 models); alibaba/ServeGen (4 models); two services of
Azure's public data set of 2023, taken for two models. This repository does not
contain them: `--traces` names their directory."""

TRACE_LOADS = (0.3, 0.6, 0.85)
PROMPT_TOKEN_S = 0.0002
OUTPUT_TOKEN_S = 0.015
"""Service time where a trace has only lengths: 0.2 ms for each token of the prompt (5,000 a second)
and 15 ms for each token of the response (66 a second), about an 8B model on one GPU."""


@lru_cache(maxsize=1)
def read_traces(files: tuple[Path, ...], requests: int | None) -> list[Arrival]:
    """Merge the files by time, and return the first requests (None: all).

    A file has a column arrival_s or TIMESTAMP, and service_s or the lengths in tokens. Without a
    column model, all its requests are for one model.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file has other columns, or the requests have no load that could be scaled.
    """
    rows: list[Arrival] = []
    for path in files:
        rows += read_rows(path, partial(_arrival, path.stem))
    rows = sorted(rows)[:requests]
    if not rows or rows[0].at == rows[-1].at or not any(row.work_s for row in rows):
        where = ", ".join(map(str, files))
        raise ValueError(f"{where}: needs two requests at different times, and one that takes some")
    return rows


def _arrival(file: str, row: Mapping[str, str]) -> Arrival:
    if "arrival_s" in row:
        at = seconds(row, "arrival_s")
    else:
        at = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
    return Arrival(at, row.get("model", file), _work_s(row))


def _work_s(row: Mapping[str, str]) -> float:
    if "service_s" in row:
        return seconds(row, "service_s")
    prompt = int(row.get("prompt_len") or row["ContextTokens"])
    output = int(row.get("output_len") or row["GeneratedTokens"])
    if min(prompt, output) < 0:
        raise ValueError(f"a length of {min(prompt, output)} tokens")
    return PROMPT_TOKEN_S * prompt + OUTPUT_TOKEN_S * output


@dataclass(frozen=True)
class TraceCase:
    """Recorded traffic, sped up or slowed down to a load.

    Attributes:
        trace: Its name in `TRACES`.
        switch_s: Hook time of every switch.
        load: Share of the slots that would be busy if there were no switches.
        files: The files of the trace.
        requests: Number of requests to replay; None for all.
    """

    trace: str
    switch_s: float
    load: float
    files: tuple[Path, ...]
    requests: int | None

    def __str__(self) -> str:
        return f"{self.trace}, {self.switch_s:g} s, load {self.load:g}"

    def axes(self) -> dict[str, Any]:
        """The varied parameters."""
        return {"trace": self.trace, "switch_s": self.switch_s, "load": self.load}

    def arrivals(self) -> list[Arrival]:
        """Return the arrivals from time 0 on, scaled to the load."""
        recorded = read_traces(self.files, self.requests)
        begin, end = recorded[0].at, recorded[-1].at
        work_s = sum(arrival.work_s for arrival in recorded)
        stretch = work_s / (SLOTS * self.load) / (end - begin)
        return [arrival._replace(at=(arrival.at - begin) * stretch) for arrival in recorded]

    def run(self, policy: str) -> Figures:
        """Simulate it under a policy."""
        arrivals = self.arrivals()
        models = sorted({arrival.model for arrival in arrivals})
        setup = fleet(models, self.switch_s, SLOTS, policy)
        return wait_figures(simulate(setup, arrivals), self.switch_s)


def traces(directory: Path, requests: int | None) -> list[TraceCase]:
    """The traces whose files exist, at each switch cost and load.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed.
    """
    found = {
        name: tuple(directory / file for file in files)
        for name, files in TRACES.items()
        if all((directory / file).is_file() for file in files)
    }
    for files in found.values():
        read_traces(files, requests)
    return [
        TraceCase(name, switch_s, load, files, requests)
        for (name, files), switch_s, load in product(found.items(), SWITCHES_S, TRACE_LOADS)
    ]
