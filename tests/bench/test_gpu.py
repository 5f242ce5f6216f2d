"""`bench.gpu` with a stand-in for vLLM, which fills a fake GPU, and a fake nvidia-smi that reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import checks
from bench.gpu import measure as measure_module
from bench.gpu.__main__ import main, run
from bench.gpu.checks import lacks, vllm_version
from bench.gpu.measure import hook_seconds, latest_switch
from bench.gpu.memory import gpus, used_mib
from bench.gpu.options import Options, parse
from bench.gpu.report import markdown, p99, result_of, spread
from bench.gpu.site import has_text
from bench.processes import CannotRun
from tests.hooks.bench import install_standin, kill_all, processes_with

NVIDIA_SMI = """#!/bin/sh
used=0
for file in "$STANDIN_DIR"/gpu/*; do
    [ ! -e "$file" ] || used=$((used + $(cat "$file")))
done
case $* in
    *memory.used*) echo "$used" ;;
    *) echo "Fake H100, 80GB, 555.42, 100" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with a GPU of 100 MiB and a vLLM, which ends with the test."""
    home, programs = tmp_path / "standin", tmp_path / "bin"
    for made in (home, programs):
        made.mkdir()
    install_standin(programs / "vllm", "vllm")
    fake(tmp_path, NVIDIA_SMI)
    monkeypatch.setenv("STANDIN_DIR", str(home))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(measure_module, "SETTLE_S", 0.0)
    yield tmp_path
    kill_all(processes_with(f"STANDIN_DIR={home}"))


def fake(machine: Path, script: str) -> None:
    path = machine / "bin" / "nvidia-smi"
    path.write_text(script)
    path.chmod(0o755)


@pytest.mark.slow
def test_both_ways_at_every_level(machine: Path) -> None:
    out = machine / "out"
    models = ("org/one", "org/two")
    options = Options(models, levels=("1", "stop"), args="--x '1 2'", repetitions=1, out=out)
    assert list(lacks(options)) == []
    results = run(options)

    sleeping, stopping = results.levels
    ways = [(switch.source, switch.target) for switch in sleeping.switches]
    assert ways == [(None, "a"), ("a", "b"), ("b", "a"), ("a", "b")]
    assert [switch.is_start for switch in sleeping.switches] == [True, True, False, False]
    for level in results.levels:
        for switch in level.switches:
            assert 0 < switch.wake_s <= switch.switch_s <= switch.first_token_s
            assert (switch.sleep_s is None) == (switch.source is None)
            assert switch.warm_first_token_s < switch.first_token_s
        assert (level.before.gpu_mib, level.stopped.gpu_mib) == (0, 0)
        assert {result_of(steps) for steps in level.validated.values()} == {"PASS"}
        assert set(level.validated) == {"a", "b"}
    assert [switch.after.gpu_mib for switch in sleeping.switches] == [82, 84, 84, 84]
    assert [switch.after.gpu_mib for switch in stopping.switches] == [82, 82, 82, 82]
    assert (sleeping.asleep.gpu_mib, stopping.asleep.gpu_mib) == (4, 0)
    assert processes_with(f"STANDIN_DIR={machine / 'standin'}") == []

    calls = (machine / "standin" / "calls").read_text()
    assert calls.count("vllm serve org/one --x 1 2 --enable-sleep-mode") == 1
    assert "level=1" in calls
    stored = json.loads((out / "results.json").read_text())
    assert [len(level["switches"]) for level in stored["levels"]] == [4, 4]
    assert stored["gpus"] == [{"name": "Fake H100, 80GB", "driver": "555.42", "total_mib": 100}]
    text = (out / "results.md").read_text()
    assert "vLLM 0.0.0" in text
    assert "| 1 | b to a | 1 |" in text
    assert "| stop | start of a | 1 |" in text
    assert "| 1 | a | PASS | - |" in text
    assert len([line for line in text.splitlines() if line.startswith("| 1 | 0 | 82 (")]) == 1


def test_a_server_that_does_not_start_ends_the_run_and_leaves_nothing(machine: Path) -> None:
    (machine / "standin" / "faults").write_text("start_fails")
    options = Options(("org/one", "org/two"), levels=("1",), repetitions=1, out=machine / "out")
    with pytest.raises(CannotRun, match="HTTP 500"):
        run(options)
    assert processes_with(f"STANDIN_DIR={machine / 'standin'}") == []


def test_what_is_missing_is_told_together_before_anything_starts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "empty").mkdir()
    monkeypatch.setenv("PATH", str(machine / "empty"))
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--model", "/no/such", "--model", "org/two"])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = str(ended.value).splitlines()
    assert lines[0] == "bench.gpu cannot run:"
    for needed in ("curl is not", "setsid is not", "vllm: no such program", "nvidia-smi is not",
                   "/no/such: no model there"):  # fmt: skip
        assert len([line for line in lines if needed in line]) == 1, needed


def test_lacks_of_the_gpu(machine: Path) -> None:
    options = Options(("org/one", "org/two"))
    (machine / "standin" / "gpu").mkdir()
    (machine / "standin" / "gpu" / "somebody").write_text("6")
    (busy,) = lacks(options)
    assert "6 of 100 MiB of GPU memory are in use" in busy
    fake(machine, "#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver' >&2\nexit 9\n")
    (failed,) = lacks(options)
    assert "nvidia-smi failed: NVIDIA-SMI has failed: no driver" in failed
    fake(machine, "#!/bin/sh\n")
    (none,) = lacks(options)
    assert "lists no GPU" in none
    fake(machine, "#!/bin/sh\necho 'GB10, 555, [N/A]'\n")
    (unknown,) = lacks(options)
    assert "gives no amount of memory: '[N/A]'" in unknown


def test_sleep_levels_without_a_gpu_are_refused(machine: Path) -> None:
    (refused,) = lacks(Options(("org/one", "org/two"), levels=("1", "2"), has_gpu=False))
    assert "level 1 and 2: vLLM has sleep mode on GPUs only; give --level stop" in refused
    assert not list(lacks(Options(("org/one", "org/two"), levels=("stop",), has_gpu=False)))


def test_lacks_of_models(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(machine / "hf"))
    (machine / "hf" / "hub" / "models--org--two").mkdir(parents=True)
    folder = machine / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(200 << 20)  # sparse
    monkeypatch.setattr(checks, "available_mib", lambda: 100)
    one, weights = lacks(Options(("org/one", str(folder)), levels=("1",)))
    assert one.startswith("org/one: not in ")
    assert weights.startswith("level 1 moves 200 MiB")
    assert not list(lacks(Options(("org/two", str(folder)), levels=("2",))))


def test_a_vllm_without_a_version_is_told(machine: Path) -> None:
    assert vllm_version("vllm") == "0.0.0"
    with pytest.raises(CannotRun, match="false --version failed"):
        vllm_version("false")


def test_a_gpu_whose_name_has_a_comma(machine: Path) -> None:
    (gpu,) = gpus()
    assert (gpu.name, gpu.driver, gpu.total_mib) == ("Fake H100, 80GB", "555.42", 100)
    assert used_mib() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x"], "give --model twice"),
        (["--model", "x", "--model", "x"], "two different models"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--args", "'"], "--args: No closing quotation"),
        (["--level", "3"], "invalid choice"),
        (["--out", "/proc"], "/proc is not empty"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_levels_are_measured_once_and_in_order() -> None:
    assert parse(["--level", "2", "--level", "1", "--level", "2"]).levels == ("2", "1")
    assert parse([]).levels == ("1", "2")


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ('data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}', False),
        ('data: {"choices": [{"delta": {"content": "x"}}]}', True),
        ('data:{"choices": [{"delta": {"reasoning": "x"}}]}', True),
        ('data: {"choices": [], "usage": {}}', False),
        ("data: [DONE]", False),
        (": keep-alive", False),
        ("", False),
    ],
)
def test_the_first_token_is_the_first_piece_of_text(line: str, has: bool) -> None:
    assert has_text(line) is has


def test_an_error_within_a_stream_ends_the_run() -> None:
    with pytest.raises(CannotRun, match="the stream broke"):
        has_text('data: {"error": {"message": "x"}}')


def test_a_switch_that_failed_or_went_elsewhere_is_none() -> None:
    record = {"from": "b", "to": "a", "result": "success", "started": 10.0, "ended": 20.0}
    assert latest_switch({"switches": [{}, record]}, "a") == record
    with pytest.raises(CannotRun, match="expected a switch to b"):
        latest_switch({"switches": [record]}, "b")
    with pytest.raises(CannotRun, match="expected a switch to a"):
        latest_switch({"switches": [record | {"result": "failure"}]}, "a")


def test_the_hooks_of_a_switch_are_those_within_it() -> None:
    def ran(model: str, hook: str, started: float, ok: bool = True) -> dict[str, Any]:
        return {"model": model, "hook": hook, "started": started, "duration_secs": 1.0, "ok": ok}

    record = {"started": 10.0, "ended": 20.0}
    runs = [
        ran("a", "wake", 5.0),
        ran("a", "sleep", 10.0),
        ran("b", "wake", 12.0),
        ran("b", "alive", 21.0),
    ]
    assert hook_seconds({"hooks": runs}, record) == {("a", "sleep"): 1.0, ("b", "wake"): 1.0}
    with pytest.raises(CannotRun, match="a hook failed"):
        hook_seconds({"hooks": [ran("a", "sleep", 11.0, ok=False)]}, record)
    assert hook_seconds({"hooks": [ran("b", "alive", 11.0, ok=False)]}, record)


def test_percentiles_are_by_nearest_rank() -> None:
    assert p99([float(value) for value in range(1, 201)]) == 198
    assert p99([3.0, 1.0]) == 3
    assert spread([]) == "-"
    assert spread([2.0]) == "2.00"
    assert spread([1.0, 2.0, 6.0]) == "2.00 (6.00)"


def test_results_without_a_gpu(machine: Path) -> None:
    options = Options(
        ("org/one", "org/two"),
        ("stop",),
        repetitions=1,
        cycles=0,
        has_gpu=False,
        out=machine / "out",
    )
    text = markdown(run(options))
    assert "no GPU" in text
    assert "llmux validate" not in text
    assert any(line.startswith("| stop | - | - (") for line in text.splitlines())
