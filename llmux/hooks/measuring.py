"""Measure what the models that are awake hold of the resources, for `needs: auto`.

A model's `memory` hook tells it. Without one, the processes that its wake hook has left running are
looked up: nvidia-smi tells what they hold of GPUs, which the resources `gpu0`, `gpu1` and so on
stand for, and the kernel what they hold of the machine's memory, the resource `ram`.

A measurement that may have missed something is none: a model that is thought to need less than it
does would be woken beside others that leave no room for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import trio

from llmux.config import Config
from llmux.config.gpus import gpu_indexes
from llmux.config.sizes import MOST_BYTES, size_bytes
from llmux.errors import HookError
from llmux.hooks.processes import left_by_wake, resident_bytes
from llmux.hooks.shell import ShellHooks, ShellModelHooks
from llmux.hooks.sockets import is_served_by
from llmux.observe.gpu_shares import gpu_shares
from llmux.observe.gpus import NvidiaSmi, QueryFailed
from llmux.observe.logs import get_logger

LONGEST_S = 30.0
"""Time that a measurement without a hook may take: nvidia-smi is asked twice, and the kernel counts
pages, a second for some hundred GiB."""

RAM = "ram"

HINT = "give the model a `memory` hook, or its `needs`; until then it is awake alone"

log = get_logger(__name__)


T = TypeVar("T")


class Unmeasured(Exception):
    """There is no measurement; the message says why."""


class Measurer:
    """Measures models.

    Args:
        shell: The hooks of the models.
        smi: Runs nvidia-smi; None if this machine has none.
        config: Returns the config in use.
    """

    def __init__(
        self, shell: ShellHooks, smi: NvidiaSmi | None, config: Callable[[], Config]
    ) -> None:
        self._shell = shell
        self._smi = smi
        self._config = config
        self._said: dict[str, str] = {}  # the latest reason by model
        # A thread that hangs in /proc keeps it, so that at most one does.
        self._threads = trio.CapacityLimiter(1)

    async def measure(self, model: str) -> Mapping[str, int] | None:
        """Return what a model that is awake holds: bytes by resource; none holds nothing.

        It takes as long as `hook_timeouts.memory`, or `LONGEST_S`, at most. Why a model cannot be
        measured is logged, once for each reason.

        Args:
            model: Its name.

        Returns:
            None if it could not be measured.
        """
        hooks = self._shell.find(model)
        if hooks is None:  # a reload has removed it meanwhile
            return None
        try:
            found = await self._measured(hooks)
        except HookError:
            return None  # which the hook's own event tells
        except (QueryFailed, Unmeasured) as error:
            if self._said.get(model) != str(error):
                log.warning("memory_unmeasured", model=model, error=str(error), hint=HINT)
            self._said[model] = str(error)
            return None
        self._said.pop(model, None)
        return found

    @property
    def _resources(self) -> Collection[str]:
        return self._config().resources

    async def _measured(self, hooks: ShellModelHooks) -> Mapping[str, int]:
        if hooks.has("memory"):
            return read_amounts(await hooks.output("memory"), self._resources)
        return await self._look(hooks)

    async def _look(self, hooks: ShellModelHooks) -> Mapping[str, int]:
        try:
            with trio.fail_after(LONGEST_S):
                return await self._by_processes(hooks)
        except trio.TooSlowError:
            raise Unmeasured(f"looking at its processes took more than {LONGEST_S:g} s") from None

    async def _by_processes(self, hooks: ShellModelHooks) -> Mapping[str, int]:
        gpus = gpu_indexes(self._resources)
        if not gpus and RAM not in self._resources:
            raise Unmeasured("of `resources`, llmux can only measure `gpu0`, `gpu1`, ... and `ram`")
        if gpus and self._smi is None:
            raise Unmeasured("there is no nvidia-smi")
        found: dict[str, int] = {}
        pids = await self._in_thread(lambda: _server_of(hooks, self._shell.state_dir))
        if gpus and self._smi is not None:
            held = (await gpu_shares(self._smi)).of(pids)
            found = {name: held[index] for name, index in gpus.items() if held[index]}
        if RAM in self._resources:
            found[RAM] = await self._in_thread(lambda: sum(map(resident_bytes, pids)))
        return found

    async def _in_thread(self, look: Callable[[], T]) -> T:
        """Call what reads /proc, which can hang where a process does."""
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._threads)


def _server_of(hooks: ShellModelHooks, state_dir: Path | None) -> frozenset[int]:
    """Return the processes of a model's server.

    Raises:
        Unmeasured: It is not among those that were found.
    """
    pids = left_by_wake(hooks.model, state_dir)
    if not pids:
        raise Unmeasured("no process that its wake hook has started runs")
    if not is_served_by(hooks.address, pids):
        raise Unmeasured(
            f"of the processes that its wake hook has started, none listens at {hooks.address}"
        )
    return pids


def read_amounts(text: str, resources: Collection[str]) -> dict[str, int]:
    """Read the output of a `memory` hook: a line of `NAME BYTES` or `NAME SIZE` for each resource.

    Of several lines for a resource, the sum counts, as of several processes.

    Raises:
        Unmeasured: It has another line, or names what is no resource.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise Unmeasured("the memory hook printed nothing")
    found: dict[str, int] = {}
    for line in lines:
        try:
            name, amount = _amount(line, resources)
        except ValueError as error:
            raise Unmeasured(f"the memory hook printed {line[:100]!r}: {error}") from None
        found[name] = found.get(name, 0) + amount
        if found[name] > MOST_BYTES:
            raise Unmeasured(
                f"the memory hook printed {found[name]} for {name!r}: more than any machine has"
            )
    return found


def _amount(line: str, resources: Collection[str]) -> tuple[str, int]:
    """Read a line; raises ValueError."""
    named = [name for name in resources if line.startswith((f"{name} ", f"{name}\t"))]
    if not named:
        known = ", ".join(sorted(resources)) or "nothing"
        raise ValueError(f"it does not begin with the name of a resource; there is {known}")
    name = max(named, key=len)  # names may have spaces
    size = line[len(name) :].strip()
    amount = int(size) if re.fullmatch("[0-9]{1,30}", size) else size_bytes(size)
    if amount > MOST_BYTES:
        raise ValueError("that is more than any machine has")
    return name, amount
