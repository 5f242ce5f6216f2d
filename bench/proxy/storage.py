"""The JSON file that `--save` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.machine import machine
from bench.native import Load
from bench.proxy.figures import Figures
from bench.proxy.samples import Round


def save(path: Path, rounds: Sequence[Round], figures: Figures) -> None:
    """Write every sample and figure as JSON."""

    def samples(one: Round) -> dict[str, dict[str, dict[str, object]]]:
        return {
            work: {
                name: {"cpu_us": s.cpu_us, "instructions": s.instructions}
                | {f: getattr(s.load, f) for f in Load.__struct_fields__}
                for name, s in row.items()
            }
            for work, row in one.items()
        }

    data = {
        "machine": machine(),
        "figures": {
            key: {name: asdict(figure) for name, figure in row.items()}
            for key, row in figures.items()
        },
        "rounds": [samples(one) for one in rounds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
