"""The life of a served config: background tasks, then one orderly end in fixed stages.

    1. stop_admitting   waiting requests get 503, event streams end, the control listener closes
    2. (the lane)       drains its connections until the deadline that stage 1 returned; at that,
                        `llmux serve` cuts the requests in flight, and their streams say why
    3. settle           a running hook may use the rest of the grace; then `on_shutdown: sleep`
    4. close            control listener, backend connections, traces; the journal is flushed last

The stages are the same for all lanes, but not their driver. `llmux serve` owns its connections, so
it runs 1 to 3 itself and leaves 4 to the lifespan. Under an ASGI server, the connections are closed
or cancelled by the time `lifespan.shutdown` arrives, and `stop` runs all stages. Each stage is
idempotent, so neither driver needs to know how far the other got.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import trio

from llmux.config import Config
from llmux.downstream.asgi import LAST_STALL_S, ModelTraffic
from llmux.errors import ShuttingDown
from llmux.observe.feed import Feed
from llmux.observe.logs import get_logger
from llmux.proxy.forward import ModelProxy
from llmux.server.control_listener import ControlListener
from llmux.server.exits import exit_at_once
from llmux.switching.switchboard import Switchboard

if TYPE_CHECKING:  # it needs an extra
    from llmux.proxy.tracing import Tracing

Task = Callable[[], Awaitable[None]]

log = get_logger(__name__)


class Lifecycle:
    """Starts the background tasks of a service, and ends the service in order.

    Attributes:
        has_died: True once a task that must not end has crashed, or a switcher is stuck.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        board: Switchboard,
        proxy: ModelProxy,
        feed: Feed,
        traffic: ModelTraffic,
        *,
        control: ControlListener | None,
        tracing: Tracing | None,
        tasks: Iterable[Task],
        on_death: Callable[[], object],
    ) -> None:
        """Take the parts to start and to end.

        Args:
            config: Returns the config in use.
            board: The switchers; `start` starts them, too.
            proxy: Stops admitting at first, and closes its backend connections last.
            feed: Ends its event streams.
            traffic: The ASGI lane.
            control: The control API's own listener, if it has one.
            tracing: Flushed at the end.
            tasks: Background tasks; the crash of any of them ends the service.
            on_death: Called when one of them, or a switcher, has crashed.
        """
        self.has_died = False
        self._config = config
        self._board = board
        self._proxy = proxy
        self._feed = feed
        self._traffic = traffic
        self._control = control
        self._tracing = tracing
        self._tasks = [board.run, *tasks]
        self._on_death = on_death
        self._grace_ends_at = math.inf  # until admission stops
        self._has_settled = False
        board.on_death = self._die

    def start(self, nursery: trio.Nursery) -> None:
        """Start the background tasks in the lifespan's own nursery."""
        # Not with Quart's `add_background_task`, whose tasks may crash without ending the server.
        for task in self._tasks:
            nursery.start_soon(self._run_vital, task)

    async def _run_vital(self, task: Task) -> None:
        """Run a background task; if it crashes, end the service."""
        try:
            await task()
        except Exception:
            # Raised, it would only cancel the other background tasks, and llmux would serve on.
            log.exception("switcher_died" if task == self._board.run else "task_died")
            self._board.stop()
            self._die()

    def _die(self) -> None:
        self.has_died = True
        self._on_death()

    def stop_admitting(self) -> float:
        """Stop admitting requests and end event streams.

        Returns:
            The end of the grace for requests in flight, in Trio's time. The grace begins with the
            first call.
        """
        self._board.stop()
        self._proxy.stop()
        self._feed.stop()
        self._traffic.stop()
        if self._control is not None:
            self._control.stop()
        if self._grace_ends_at == math.inf:
            self._grace_ends_at = trio.current_time() + self._config().shutdown_grace_secs
        return self._grace_ends_at

    async def cut_at_last(self) -> None:
        """Cut the requests that outlast the grace, so that each stream says why it ends."""
        await trio.sleep_until(self._grace_ends_at)
        self._proxy.cut(ShuttingDown())

    async def settle(self) -> None:
        """End switching: let a running hook use the rest of the grace, then sleep if configured."""
        if self._has_settled:
            return
        self._has_settled = True
        with trio.move_on_at(self._grace_ends_at) as patience:
            await self._board.wait_ended()
        if self.has_died and patience.cancelled_caught:
            exit_at_once()  # its hook cannot be ended, and waiting for it would never end
        self._board.end()
        # The state of a group whose switcher died is unknown, so running its hooks may do harm.
        if self._config().on_shutdown == "sleep" and not self.has_died:
            await self._board.put_to_sleep()

    async def stop(self) -> None:
        """Run the stages that have not been run yet; called when the lifespan ends."""
        self.stop_admitting()
        # Without `sleep`, do not wait for hooks: the ASGI server has used up the grace already.
        if self._config().on_shutdown == "sleep":
            await self.settle()
        self._tell_left()
        await self._close()

    def _tell_left(self) -> None:
        """Log the models whose servers go on, and still hold a GPU."""
        groups = self._board.groups.values()
        left = [m.name for group in groups for m in group.models.values() if m.holds_gpu]
        if left:
            hint = "their servers keep running: the next llmux adopts them (on_shutdown: leave)"
            if self._config().on_shutdown == "sleep":
                hint = "they could not be put to sleep; their servers may still hold the GPU"
            log.info("models_left", models=left, hint=hint)

    async def _close(self) -> None:
        if self._control is not None:
            with trio.move_on_after(LAST_STALL_S):
                await self._control.wait_ended()
        self._proxy.upstreams.close()
        if self._tracing:
            await self._tracing.close()
