"""What each process holds of each GPU, from a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmux.observe.gpu_shares import GpuShares, gpu_shares
from llmux.observe.gpus import NvidiaSmi, QueryFailed
from tests.observe.test_gpus import fake

GIB = 1 << 30
GPUS = "0, GPU-a, 20480\\n1, GPU-b, 4\\n"


def smi(folder: Path, users: str, gpus: str = GPUS) -> NvidiaSmi:
    answers = f"--query-gpu=*) printf '{gpus}' ;; --query-compute-apps=*) printf '{users}' ;;"
    return NvidiaSmi(fake(folder, f'case "$1" in {answers} esac'))


async def test_processes_are_summed_by_gpu(tmp_path: Path) -> None:
    users = "7, 10240, GPU-a\\n8, 9216, GPU-a\\n8, 1024, GPU-b\\n8, 1024, GPU-b\\n"
    found = await gpu_shares(smi(tmp_path, users))
    assert found == GpuShares(
        {0: 20 * GIB, 1: 4 << 20}, {(0, 7): 10 * GIB, (0, 8): 9 * GIB, (1, 8): 2 * GIB}
    )
    assert dict(found.of({7, 8, 9})) == {0: 19 * GIB, 1: 2 * GIB}
    assert dict(found.of({7})) == {0: 10 * GIB}
    assert dict(found.of({9})) == {}


async def test_a_process_whose_memory_is_unknown(tmp_path: Path) -> None:
    found = await gpu_shares(smi(tmp_path, "7, [N/A], GPU-a\\n8, 1024, GPU-b\\n"))
    with pytest.raises(QueryFailed, match="does not know what process 7 holds"):
        found.of({7})
    assert dict(found.of({8})) == {1: GIB}


@pytest.mark.parametrize(
    ("users", "why"),
    [
        ("", "which processes hold 20GiB of GPU 0"),  # as in a container
        ("7, 18432, GPU-a\\n", "which processes hold 2GiB of GPU 0"),
        ("7, 20480, GPU-a\\n8, [N/A], GPU-b\\n", "which processes hold 4MiB of GPU 1"),
    ],
    ids=["none", "some", "not-how-much"],
)
async def test_who_holds_nothing_may_be_hidden(tmp_path: Path, users: str, why: str) -> None:
    """Then nothing is known of a process that seems to hold nothing."""
    found = await gpu_shares(smi(tmp_path, users))
    with pytest.raises(QueryFailed, match=why):
        found.of({9})


@pytest.mark.parametrize(
    ("gpus", "users"),
    [
        (GPUS, "7, 1024\\n"),
        (GPUS, "x, 1024, GPU-a\\n"),
        (GPUS, "7, 1024, GPU-c\\n"),
        ("No devices were found\\n", ""),
    ],
    ids=["fields", "pid", "gpu", "no-gpus"],
)
async def test_other_output_is_no_measurement(tmp_path: Path, gpus: str, users: str) -> None:
    with pytest.raises(QueryFailed, match="unexpected output of nvidia-smi"):
        await gpu_shares(smi(tmp_path, users, gpus))
