"""GPU memory by process, as nvidia-smi reports it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from llmux.config.sizes import size_text
from llmux.observe.gpus import MIB, NvidiaSmi, QueryFailed

HIDDEN_BYTES = 1 << 30
"""Memory of a GPU that may belong to no process: the driver keeps some hundred MiB."""


@dataclass(frozen=True)
class GpuShares:
    """What each process holds of each GPU.

    Attributes:
        used: Bytes in use by index of the GPU, as the driver counts them.
        held: Bytes by index of the GPU and id of the process; None where nvidia-smi does not know.
    """

    used: dict[int, int]
    held: dict[tuple[int, int], int | None]

    def of(self, pids: Collection[int]) -> Counter[int]:
        """Return what some processes hold together, by index of the GPU.

        Raises:
            QueryFailed: That is unknown; the message says why.
        """
        total: Counter[int] = Counter()
        for (index, pid), amount in self.held.items():
            if pid in pids and amount is None:
                raise QueryFailed(f"nvidia-smi does not know what process {pid} holds")
            if pid in pids and amount is not None:
                total[index] += amount
        if not total:
            self._check_all_are_seen()
        return total

    def _check_all_are_seen(self) -> None:
        """Raise QueryFailed if memory is in use whose processes nvidia-smi does not show."""
        for index, used in self.used.items():
            known = [amount for (gpu, _), amount in self.held.items() if gpu == index]
            hidden = used - sum(amount or 0 for amount in known)
            if None in known or hidden > HIDDEN_BYTES:
                raise QueryFailed(
                    f"nvidia-smi does not show which processes hold {size_text(max(hidden, 0))} "
                    f"of GPU {index}"
                )


async def gpu_shares(smi: NvidiaSmi) -> GpuShares:
    """Ask nvidia-smi.

    Raises:
        QueryFailed: It has no answer.
    """
    gpus = list(_rows(await smi.query("--query-gpu=index,uuid,memory.used"), 3))
    users = _rows(await smi.query("--query-compute-apps=pid,used_memory,gpu_uuid"), 3)
    indexes = {uuid: int(index) for index, uuid, _ in gpus if index.isdecimal()}
    used = {indexes[uuid]: int(_bytes(amount) or 0) for _, uuid, amount in gpus if uuid in indexes}
    held: dict[tuple[int, int], int | None] = {}
    for pid, amount, uuid in users:
        if not pid.isdecimal() or uuid not in indexes:
            raise QueryFailed(f"unexpected output of nvidia-smi: {pid}, {amount}, {uuid}"[:200])
        # A process has a line for each instance (MIG) of a GPU that it uses.
        key, more = (indexes[uuid], int(pid)), _bytes(amount)
        before = held.get(key, 0)
        held[key] = None if more is None or before is None else before + more
    return GpuShares(used, held)


def _rows(text: str, count: int) -> Iterator[list[str]]:
    """Yield the lines of nvidia-smi's CSV; raises QueryFailed for one with other fields."""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if row and len(row) != count:
            raise QueryFailed(f"unexpected output of nvidia-smi: {', '.join(row)[:200]}")
        if row:
            yield row


def _bytes(mib: str) -> int | None:
    """Return bytes of a number of MiB; None for `[N/A]` and the like."""
    return int(mib) * MIB if mib.isdecimal() and len(mib) < 12 else None
