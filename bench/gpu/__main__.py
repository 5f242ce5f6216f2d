"""Switch two real vLLM servers on a GPU: `python -m bench.gpu`; see README.md."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime

import msgspec

from bench.gpu.checks import lacks, vllm_version
from bench.gpu.measure import measure
from bench.gpu.memory import gpus
from bench.gpu.options import Options, parse
from bench.gpu.report import Results, markdown
from bench.gpu.site import NAMES
from bench.machine import cpu_model, say
from bench.processes import CannotRun, end_on_sigterm
from llmux import __version__


def run(options: Options) -> Results:
    """Measure all levels; what is done is written after each. Raises CannotRun."""
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}",
        gpus=gpus() if options.has_gpu else [],
        vllm=vllm_version(options.vllm),
        llmux=__version__,
        models=dict(zip(NAMES, options.models, strict=True)),
        args=options.args,
        levels=[],
    )
    for level in options.levels:
        results.levels.append(measure(options, level))
        write(options, results)
    return results


def write(options: Options, results: Results) -> None:
    """Write the JSON with all samples, and the tables."""
    encoded = msgspec.json.format(msgspec.json.encode(results))
    (options.out / "results.json").write_bytes(encoded)
    (options.out / "results.md").write_text(markdown(results))


def main() -> None:
    """Check, measure, print the tables."""
    options = parse()
    end_on_sigterm()
    if missing := list(lacks(options)):
        sys.exit("\n".join(("bench.gpu cannot run:", *(f"  - {each}" for each in missing))))
    try:
        results = run(options)
    except CannotRun as error:
        sys.exit(f"bench.gpu: {error}\nLogs are in {options.out}.")
    except KeyboardInterrupt:
        sys.exit(130)
    print(markdown(results))
    say(f"results.json and results.md are in {options.out}")


if __name__ == "__main__":
    main()
