"""`llmux validate`: does a model come back from sleep as it was?

One run goes through stages, each of some steps, and ends at the first step that fails:

    start       other models of the group that may be awake, and the model itself, are put to sleep;
                it is woken and asked twice
    1, 2, ...   it is put to sleep, woken and asked once more, and the answer is compared
    end         it is put to sleep, however the run has ended: by a failure or by a signal, too

How answers are judged: `llmux.validate.verdicts`. What may be awake is on disk at every instant, as
with the switcher: an llmux that comes after a killed run knows what to put to sleep.
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
from llmux.openai.wire import request_headers
from llmux.switching.awake import AwakeRecord
from llmux.switching.steps import Hooks
from llmux.upstream import Backend
from llmux.validate.verdicts import Answer, Question, Unfit, compare

MAX_ANSWER_BYTES = 4 << 20
"""More is no answer to a short question; the longest embeddings take some 100 kB."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The first ends the checks, a second one also what is done to leave the model asleep."""

Result = Literal["PASS", "FAIL", "WARN", "-"]


class Step(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        stage: start, the number of a cycle, or end.
        step: What was done.
        seconds: How long it took; None for what takes no time.
        result: "-": it was not done, or proves nothing either way.
        detail: What there is to say about it.
    """

    stage: str
    step: str
    seconds: float | None
    result: Result
    detail: str = ""


Report = Callable[[Step], object]
"""Called with each step when it has ended."""


class Failed(Exception):
    """A step has failed, and was reported."""


@dataclass
class Doing:
    """A step that goes on.

    Attributes:
        detail: What there is to say about it.
        result: What comes of it if nothing is raised.
        if_failed: What comes of it if something is.
    """

    detail: str = ""
    result: Result = "PASS"
    if_failed: Result = "FAIL"


class Asker:
    """Asks a model's backend one question, again and again, past any llmux."""

    def __init__(self, model: ModelConfig, question: Question, timeout_s: float) -> None:
        """Connect to nothing yet.

        Args:
            model: Whose backend, with which headers.
            question: What to ask.
            timeout_s: Seconds for a whole answer.
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
            Unfit: There is no answer, or one that no sound model gives.
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
            config: The config that has the model; whoever calls holds its state lock.
            model: A configured model.
            hooks: Runs the config's hooks.
            record: The config's own, loaded.
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
        """Go through all stages; afterwards the model is asleep, unless its hooks failed.

        Args:
            cycles: How many times the model is put to sleep and woken again.
            report: Is told of each step.

        Returns:
            Whether no step has failed and no signal has come.
        """
        self._report = report
        has_passed = False
        checks, end = trio.CancelScope(), trio.CancelScope()
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as background:
                background.start_soon(_heed, signals, checks, end)
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
            with self._step("compare", is_timed=False) as doing:
                doing.result, doing.detail = compare(first, second, after)

    async def _clear_the_way(self) -> None:
        """Put to sleep what may be awake, as the switcher would; and the model in any case."""
        found = {name: entry for name in self._group if (entry := self._record.entry(name))}
        for entry in found.values():
            if entry.mark:
                await end_marked(entry.mark)
        for name in found:
            if name != self._model:
                await self._put_to_sleep(name, f"{name} may be awake")
        await self._put_to_sleep(self._model)

    async def _put_to_sleep(self, model: str, why: str = "") -> None:
        """Run the sleep hook, and what verifies it; raises Failed.

        Of a model that is not known to be awake, a sleep hook that fails says nothing.
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
        with suppress(Failed), self._step(hook) as doing:
            doing.detail, doing.if_failed = detail, if_failed
            await self._hooks.of(model).run(hook, source=model, target=self._model)
            has_succeeded = True
        return has_succeeded

    async def _check_alive_says_no(self) -> None:
        with self._step("alive, asleep") as doing:
            try:
                await self._hooks.of(self._model).run("alive", target=self._model)
            except HookError as error:
                if not error.was_started:
                    raise
                doing.detail = f"no, as it should be ({error.reason})"
                return
            doing.result = "WARN"
            doing.detail = (
                "says yes: llmux could not tell, should others put the model to sleep"
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
        with self._step(step) as doing:
            answer = await self._ask_once()
            doing.detail = str(answer)
        return answer

    @contextmanager
    def _step(self, name: str, *, is_timed: bool = True) -> Iterator[Doing]:
        """Report a step; raises Failed if it fails, unless that does not matter."""
        doing, started_at = Doing(), trio.current_time()
        try:
            yield doing
        except (HookError, Unfit) as error:
            why = one_line(error)
            doing.detail = f"{doing.detail}: {why}" if doing.detail else why
            doing.result = doing.if_failed
        except trio.Cancelled:
            doing.result, doing.detail = "FAIL", "interrupted"
            raise
        finally:
            took_s = round(trio.current_time() - started_at, 3) if is_timed else None
            self._report(Step(self._stage, name, took_s, doing.result, doing.detail))
        if doing.result == "FAIL":
            raise Failed


async def _heed(
    signals: AsyncIterator[int], checks: trio.CancelScope, end: trio.CancelScope
) -> None:
    async for _ in signals:
        if checks.cancel_called:
            end.cancel()
        checks.cancel()


def one_line(error: HookError | Unfit) -> str:
    """Why a step has failed; what a hook printed last stands behind its reason."""
    if isinstance(error, Unfit):
        return str(error)
    return " | ".join([error.reason, *error.output.splitlines()])
