"""`python -m bench.soak`: starts llmux, clients and faults, and prints the report."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import trio

import bench.soak
from bench.processes import CannotRun, end_on_sigterm, free_ports, raise_descriptor_limit
from bench.soak import checks
from bench.soak.clients import start_clients
from bench.soak.faults import control, start_faults
from bench.soak.hostile_clients import start_hostile_clients
from bench.soak.process import LANES, Llmux, reaping, watchdog
from bench.soak.record import Record
from bench.soak.reloads import Reloads
from bench.soak.report import report
from bench.soak.run import Run
from bench.soak.stage import Stage, read_lines
from bench.soak.watch import note_bound, start_watching


async def carry_out(run: Run) -> None:
    """Run everything; the record collects the findings."""
    async with reaping(run.llmux):
        await run.llmux.start()
        run.began_at = trio.current_time()
        await run.status()  # descriptors that llmux opens with its first request stay open
        run.idle_descriptors = run.llmux.descriptors
        note_bound(run)
        reloads = Reloads(run)
        async with trio.open_nursery() as always:
            start_watching(run, always)
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as faults:
                    start_clients(run, clients)
                    start_hostile_clients(run, clients)
                    start_faults(run, faults, reloads)
                    await trio.sleep(run.seconds)
                    faults.cancel_scope.cancel()
                await reloads.restore()
                await control(run, "mode", {"mode": "auto"})
            always.cancel_scope.cancel()
        await checks.wait_idle(run)
        await checks.judge_counts(run)
        await checks.judge_descriptors(run)
        checks.judge_memory(run)
        await checks.judge_end(run)
    checks.judge_causes(run)
    run.lost = run.record.judge_lost()
    checks.judge_logs(run)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=bench.soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lane", choices=list(LANES), default="serve")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", type=int, default=6, help="besides one that comes and goes")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument(
        "--http2", action=argparse.BooleanOptionalAction, default=True, help="llmux speaks it"
    )
    parser.add_argument(
        "--shared", action="store_true", help="several models of a group are awake, within memory"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy logs and config there")
    options = parser.parse_args()
    end_on_sigterm()
    raise_descriptor_limit()
    missing = [tool for tool in ("flock", "curl", "setsid") if shutil.which(tool) is None]
    if missing or not Path("/proc/self/environ").exists():
        sys.exit(f"soak: needs Linux and {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="llmux-soak-") as name:
        stage = Stage(
            Path(name),
            models=options.models,
            groups=options.groups,
            ports=free_ports(options.models + 2),
            http2=options.http2,
            shares=options.shared,
        )
        llmux = Llmux(stage, options.lane)
        run = Run(stage, llmux, Record(llmux), seconds=60 * options.minutes, seed=options.seed)
        try:
            with watchdog(stage.mark):
                trio.run(carry_out, run)
        except* CannotRun as errors:
            run.record.violations += [str(error) for error in errors.exceptions]
        except* KeyboardInterrupt:
            sys.exit(130)
        finally:
            if options.keep is not None:
                shutil.copytree(name, options.keep, dirs_exist_ok=True)
        run.record.violations += [entry["what"] for entry in read_lines(Path(name) / "violations")]
        sharing = " that share memory" if options.shared else ""
        print(
            f"lane {options.lane}, seed {options.seed}, {options.minutes:g} min, "
            f"{len(stage.members)} models{sharing}, HTTP/2 {'on' if options.http2 else 'off'}\n"
        )
        print(report(run))
        sys.exit(1 if run.record.violations else 0)


if __name__ == "__main__":
    main()
