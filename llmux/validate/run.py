"""Validate a model: does it answer after sleep as it did before?

A run has stages of several steps, and ends at the first step that fails:

    start       other models of the group that may be awake, and the model itself, are put to sleep;
                it is woken and asked twice
    1, 2, ...   it is put to sleep, woken and asked once more, and the answer is compared
    end         it is put to sleep, also after a failure or a signal

`llmux.validate.verdicts` judges the answers. As with the switcher, the models that may be awake are
on disk at every instant: after a killed run, the next llmux knows what to put to sleep.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import msgspec
import trio

from llmux import __version__
from llmux.config import Config, HookName, ModelConfig
from llmux.errors import BackendBroke, BackendError, HookError
from llmux.hooks.orphans import end_marked
from llmux.observe.pauses import leave_out_pauses
from llmux.openai.headers import request_headers
from llmux.switching.awake import AwakeRecord
from llmux.switching.hooks import Hooks
from llmux.upstream import Backend
from llmux.validate.verdicts import Answer, Question, Unfit, compare

MAX_ANSWER_BYTES = 4 << 20
"""Maximum size of an answer to a short question; the longest embeddings take some 100 kB."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A first signal ends the checks, a second one also the attempt to leave the model asleep."""

Result = Literal["PASS", "FAIL", "WARN", "-"]


class Step(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        stage: start, the number of a cycle, or end.
        step: Name of the step.
        seconds: Duration; None for a step that takes no time.
        result: Result; "-" if it was not done, or proves nothing either way.
        detail: Explanation of the result.
    """

    stage: str
    step: str
    seconds: float | None
    result: Result
    detail: str = ""


Report = Callable[[Step], object]
"""Callback for each step that has ended."""


class Failed(Exception):
    """A step failed, and was reported."""


@dataclass
class Progress:
    """A step in progress.

    Attributes:
        detail: Explanation of the result.
        result: Result if nothing is raised.
        if_failed: Result if an error is raised.
    """

    detail: str = ""
    result: Result = "PASS"
    if_failed: Result = "FAIL"


class Asker:
    """Asks a model's backend one question repeatedly, without any proxy."""

    def __init__(self, model: ModelConfig, question: Question, timeout_s: float) -> None:
        """Connect to nothing yet.

        Args:
            model: Config with the backend's address and headers.
            question: Question to ask.
            timeout_s: Time limit of a whole answer, in seconds.
        """
        self._url = model.base_url
        self._question = question
        self._timeout_s = timeout_s
        own = [(b"Content-Type", b"application/json"), (b"Accept", b"application/json")]
        own.append((b"User-Agent", b"llmux/" + __version__.encode()))
        self._headers = request_headers(own, client=None, scheme="http", extra=model.headers)

    async def ask(self) -> Answer:
        """Ask once, on a connection of its own: the server may have slept since the last time.

        Raises:
            Unfit: There is no answer, or one that no intact model gives.
        """
        backend = Backend(self._url)
        try:
            with trio.fail_after(self._timeout_s):
                return self._question.read(*await self._exchange(backend))
        except trio.TooSlowError:
            raise Unfit(f"no answer within {self._timeout_s:g} s") from None
        except (BackendError, BackendBroke) as error:
            raise Unfit(str(error)) from None
        finally:
            backend.close()

    async def _exchange(self, backend: Backend) -> tuple[int, bytes]:
        target = self._question.path.encode()
        body = bytearray()
        async with backend.exchange(b"POST", target, self._headers, self._question.body) as answer:
            async for data in answer.chunks():
                body += data
                if len(body) > MAX_ANSWER_BYTES:
                    raise Unfit(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return answer.status, bytes(body)


class Validation:
    """One run over one model; see the module for its stages."""

    def __init__(
        self,
        config: Config,
        model: str,
        hooks: Hooks,
        record: AwakeRecord,
        ask: Callable[[], Awaitable[Answer]],
    ) -> None:
        """Do nothing yet.

        Args:
            config: Config with the model; the caller must hold its state lock.
            model: Name of the model.
            hooks: Hooks of the config's models.
            record: The config's record of awake models, loaded.
            ask: Asks the model; raises Unfit.
        """
        self._model = model
        group = config.models[model].group
        self._group = [one.name for one in config.models.values() if one.group == group]
        self._hooks = hooks
        self._record = record
        self._ask_once = ask
        self._stage = "start"
        self._report: Report = lambda _step: None

    async def run(self, cycles: int, report: Report) -> bool:
        """Run all stages; afterwards the model is asleep, unless its hooks failed.

        Args:
            cycles: How many times the model is put to sleep and woken again.
            report: Callback for each step.

        Returns:
            True if no step failed and no signal came.
        """
        self._report = report
        has_passed = False
        checks, end = trio.CancelScope(), trio.CancelScope()
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as background:
                background.start_soon(_cancel_on_signal, signals, checks, end)
                background.start_soon(leave_out_pauses)
                with suppress(Failed), checks:
                    await self._check(cycles)
                    has_passed = True
                self._stage = "end"
                try:
                    with end:
                        if self._record.entry(self._model) is not None:
                            await self._put_to_sleep(self._model)
                except Failed:
                    has_passed = False
                background.cancel_scope.cancel()
        return has_passed and not end.cancelled_caught

    async def _check(self, cycles: int) -> None:
        await self._clear_the_way()
        await self._wake()
        first = await self._ask("ask 1")
        second = await self._ask("ask 2")
        for cycle in range(1, cycles + 1):
            self._stage = str(cycle)
            await self._put_to_sleep(self._model)
            await self._check_alive_says_no()
            await self._wake()
            after = await self._ask("ask again")
            with self._step("compare", is_timed=False) as progress:
                progress.result, progress.detail = compare(first, second, after)

    async def _clear_the_way(self) -> None:
        """Put to sleep models that may be awake, as the switcher would, and always this one."""
        found = {name: entry for name in self._group if (entry := self._record.entry(name))}
        for entry in found.values():
            if entry.mark:
                await end_marked(entry.mark)
        for name in found:
            if name != self._model:
                await self._put_to_sleep(name, f"{name} may be awake")
        await self._put_to_sleep(self._model)

    async def _put_to_sleep(self, model: str, why: str = "") -> None:
        """Run the sleep hook and verify_asleep; raises Failed.

        If the model is not known to be awake, a failing sleep hook proves nothing.
        """
        may_be_awake = self._record.entry(model) is not None
        self._record.note(model, "unsure")
        slept = await self._succeeds(model, "sleep", why, "FAIL" if may_be_awake else "-")
        slept = slept or not may_be_awake
        is_asleep = slept
        if self._hooks.of(model).has("verify_asleep"):
            is_asleep = await self._succeeds(model, "verify_asleep", why)
        else:
            self._report(Step(self._stage, "verify_asleep", None, "-", "no verify_asleep hook"))
        if is_asleep:
            self._record.note(model, None)
        if not (slept and is_asleep):
            raise Failed

    async def _succeeds(
        self, model: str, hook: HookName, detail: str, if_failed: Result = "FAIL"
    ) -> bool:
        has_succeeded = False
        with suppress(Failed), self._step(hook) as progress:
            progress.detail, progress.if_failed = detail, if_failed
            await self._hooks.of(model).run(hook, source=model, target=self._model)
            has_succeeded = True
        return has_succeeded

    async def _check_alive_says_no(self) -> None:
        with self._step("alive, asleep") as progress:
            try:
                await self._hooks.of(self._model).run("alive", target=self._model)
            except HookError as error:
                if not error.was_started:
                    raise
                progress.detail = f"no, as it should be ({error.reason})"
                return
            progress.result = "WARN"
            progress.detail = (
                "says yes: llmux would not notice if something else put the model to sleep"
                if self._hooks.of(self._model).has("verify_asleep")
                else "says yes, and there is no verify_asleep hook: nothing shows that it sleeps"
            )

    async def _wake(self) -> None:
        self._record.note(self._model, "unsure")
        with self._step("wake"):
            await self._hooks.of(self._model).run("wake", target=self._model)
        self._record.note(self._model, "awake")
        with self._step("alive"):
            await self._hooks.of(self._model).run("alive", target=self._model)

    async def _ask(self, step: str) -> Answer:
        with self._step(step) as progress:
            answer = await self._ask_once()
            progress.detail = str(answer)
        return answer

    @contextmanager
    def _step(self, name: str, *, is_timed: bool = True) -> Iterator[Progress]:
        """Time and report a step; raises Failed if its result is FAIL."""
        progress, started_at = Progress(), trio.current_time()
        try:
            yield progress
        except (HookError, Unfit) as error:
            why = one_line(error)
            progress.detail = f"{progress.detail}: {why}" if progress.detail else why
            progress.result = progress.if_failed
        except trio.Cancelled:
            progress.result, progress.detail = "FAIL", "interrupted"
            raise
        finally:
            took_s = round(trio.current_time() - started_at, 3) if is_timed else None
            self._report(Step(self._stage, name, took_s, progress.result, progress.detail))
        if progress.result == "FAIL":
            raise Failed


async def _cancel_on_signal(
    signals: AsyncIterator[int], checks: trio.CancelScope, end: trio.CancelScope
) -> None:
    async for _ in signals:
        if checks.cancel_called:
            end.cancel()
        checks.cancel()


def one_line(error: HookError | Unfit) -> str:
    """Return why a step failed, followed by the last lines that the hook printed."""
    if isinstance(error, Unfit):
        return str(error)
    return " | ".join([error.reason, *error.output.splitlines()])
