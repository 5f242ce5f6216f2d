"""The GPUs' numbers, from a fake nvidia-smi."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trio.testing

from llmux.observe import gpus as module
from llmux.observe.gpus import Gpus, NvidiaSmi, QueryFailed, parse
from llmux.observe.metrics import Metrics
from llmux.observe.schemas import Gpu
from tests.lanes import running_lane

GIB = 1 << 30
LINE = "0, NVIDIA H200, 40960, 143771, 37"
ONE = Gpu(0, "NVIDIA H200", 40 * GIB, 143771 << 20, 0.37)


def fake(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LINE, [ONE]),
        ("", []),
        (
            "0, A, 1, 2, 0\n1, B, [N/A], [Not Supported], [Unknown Error]\n",
            [Gpu(0, "A", 1 << 20, 2 << 20, 0.0), Gpu(1, "B", None, None, None)],
        ),
        ("0, A, -1, inf, nan", [Gpu(0, "A", None, None, None)]),
    ],
)
def test_its_output_is_read(text: str, found: list[Gpu]) -> None:
    assert list(parse(text)) == found


@pytest.mark.parametrize(
    "text", ["No devices were found", "0, A, 1, 2", "x, A, 1, 2, 3", "0,1,2,3,4,5"]
)
def test_other_output_is_no_gpu(text: str) -> None:
    with pytest.raises(QueryFailed, match="unexpected output"):
        list(parse(text))


async def test_it_runs_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.02)
    monkeypatch.setattr(module, "LOOKED_AT_S", 0.2)
    runs = tmp_path / "runs"
    gpus = Gpus(NvidiaSmi(fake(tmp_path, f"echo x >> {runs}; echo '{LINE}'")))

    def count() -> int:
        return len(runs.read_text().split())

    assert gpus.look() == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gpus.run)
        with trio.fail_after(20):
            while gpus.look() != [ONE] or count() < 3:
                await trio.sleep(0.01)
            before = -1
            while before != (before := count()):  # until it no longer grows
                await trio.sleep(0.6)
            gpus.look()
            while count() == before:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_old_numbers_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(NvidiaSmi(fake(tmp_path, f"echo '{LINE}'")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gpus.run)
        with trio.fail_after(20):
            while not gpus.look():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    assert gpus.look() == []


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", "exited with 9: NVIDIA-SMI"),
        ("echo nonsense", "unexpected output of nvidia-smi: nonsense"),
        ("yes 0123456789 | head -c 200000", "printed too much"),
        ("sleep 60", "took more than 0.3 s"),
        ("trap '' TERM; sleep 60 & wait", "took more than 0.3 s"),
    ],
)  # fmt: skip
async def test_a_failure_is_logged_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str,
    error: str,
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_S", 0.3)
    runs = tmp_path / "runs"
    gpus = Gpus(NvidiaSmi(fake(tmp_path, f"echo x >> {runs}; {script}")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gpus.run)
        with trio.fail_after(20):
            while not runs.exists() or len(runs.read_text().split()) < 3:
                assert gpus.look() == []
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    out = capfd.readouterr().out
    assert out.count("gpu_query_failed") == 1
    assert error in out


async def test_a_missing_program_is_no_crash(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gpus = Gpus(NvidiaSmi(str(tmp_path / "gone")))
    with trio.move_on_after(0.2):
        await gpus.run()
    assert "No such file" in capfd.readouterr().out
    await Gpus(None).run()


async def test_one_that_cannot_be_killed_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As when the driver hangs: SIGKILL has no effect until the kernel lets go."""
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_S", 0.1)
    monkeypatch.setattr(module, "END_S", 0.1)
    monkeypatch.setattr("os.killpg", lambda _group, _signal: None)
    runs = tmp_path / "runs"
    smi = NvidiaSmi(fake(tmp_path, f"echo x >> {runs}; exec sleep 3"))
    gpus = Gpus(smi)
    gpus.look()
    began = time.monotonic()
    with trio.move_on_after(1):
        await gpus.run()
    assert time.monotonic() - began < 3
    assert runs.read_text().split() == ["x"]  # no second one beside it
    assert "cannot be ended" in capfd.readouterr().out
    assert smi._left is not None
    await smi._left.wait()


def test_unknown_numbers_are_no_metrics() -> None:
    metrics = Metrics()
    metrics.watch_gpus(lambda: [ONE, Gpu(1, "B", None, 2048, None)])
    text = metrics.render().decode()
    assert 'llmux_gpu_memory_used_bytes{gpu="0",name="NVIDIA H200"} 4.294967296e+10\n' in text
    assert 'llmux_gpu_memory_total_bytes{gpu="1",name="B"} 2048.0\n' in text
    assert 'llmux_gpu_utilization_ratio{gpu="0",name="NVIDIA H200"} 0.37\n' in text
    assert 'llmux_gpu_utilization_ratio{gpu="1"' not in text


@pytest.mark.parametrize("lane", ["fast", "asgi"])
@pytest.mark.parametrize("watched", [True, False])
async def test_status_and_metrics_show_them_unless_the_config_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str, watched: bool
) -> None:
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", f"echo '{LINE}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    async with (
        running_lane(lane, tmp_path, watch_gpus=watched) as site,
        site.client() as client,
    ):
        shown: list[dict[str, object]] = []
        with trio.move_on_after(20 if watched else 0.5):
            while not (shown := (await client.get("/control/status")).json()["gpus"]):
                await trio.sleep(0.02)
        metrics = (await client.get("/metrics")).text
    assert ("llmux_gpu_memory_total_bytes{" in metrics) is watched
    assert [each["memory_used_bytes"] for each in shown] == ([40 * GIB] if watched else [])
