"""Reload the config while serving.

Names, keys, limits and the policy change at once. If a model's server or hooks have changed, the
model is drained and put to sleep, and then gets the new ones. A removed model serves the requests
that still wait for it, and is then put to sleep with its old hooks. Other models are not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import trio
from trio_util import RepeatedEvent

from llmux.config import Config, ModelConfig, load_config
from llmux.config.places import mistaken
from llmux.config.section import Keys
from llmux.errors import ConfigError, ShuttingDown
from llmux.observe.events import Events
from llmux.observe.logs import get_logger
from llmux.observe.schemas import Reloaded
from llmux.switching.switchboard import Switchboard

WATCH_S = 1.0
"""Interval between checks of the file."""

FIXED = (
    "host",
    "port",
    "state_dir",
    "journal",
    "tracing",
    "control",
    "limits.connections",
    "limits.client_stall_secs",
    "limits.dead_peer_secs",
    "limits.header_fields",
    "http2",
    "watch_gpus",
)
"""Keys that only take effect at the start."""

log = get_logger(__name__)


Vet = Callable[[Config], Iterable[tuple[Keys, str]]]
"""Returns path and message of each mistake in a config."""


def no_mistakes(_: Config) -> Iterable[tuple[Keys, str]]:
    """Accept every config."""
    return ()


class Reloader:
    """Reads the config file again, and applies it to all parts of llmux.

    Args:
        config: The config that llmux starts with.
        board: Its switchers.
        events: Gets an event for each reload.
        complete: Fills in what a config leaves to llmux, in a thread; may raise ConfigError.

    Attributes:
        config: The config in use.
        vet: Finds mistakes that depend on how llmux was started.
        reloading: Makes a context around each reading of the file.
    """

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        events: Events | None = None,
        *,
        complete: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        self.config = config
        self.vet: Vet = no_mistakes
        self.reloading: Callable[[], AbstractContextManager[object]] = nullcontext
        self._complete = complete
        self._started_with = config
        self._board = board
        self._events = events or Events()
        self._users: list[Callable[[Config], None]] = []
        self._model_users: list[Callable[[str, ModelConfig | None], None]] = []
        self._asked_for = 0  # number of the last request to read the file
        self._answered = 0  # number of the last request that the file was read after
        self._latest: Reloaded | None = None
        self._asked = RepeatedEvent()
        self._read = RepeatedEvent()
        self._has_ended = False

    def tell(
        self,
        user: Callable[[Config], None] | None = None,
        *,
        of_models: Callable[[str, ModelConfig | None], None] | None = None,
    ) -> None:
        """Register callbacks for new configs.

        Args:
            user: Called with each new config.
            of_models: Called with the name and config of each changed model once the change is in
                use, and with None in place of the config once the model is removed.
        """
        if user is not None:
            self._users.append(user)
        if of_models is not None:
            self._model_users.append(of_models)

    def request(self) -> int:
        """Make `run` read the file once more, even if it is reading it now.

        Returns:
            The number of this request.
        """
        self._asked_for += 1
        self._asked.set()
        return self._asked_for

    async def reload(self) -> Reloaded:
        """Read the file again and return the result; cancelling the call does not cancel that.

        Raises:
            ShuttingDown: llmux is stopping, and the file will not be read any more.
        """
        number = self.request()
        while self._answered < number:
            if self._has_ended:
                raise ShuttingDown
            await self._read.wait()
        assert self._latest is not None
        return self._latest

    async def run(self) -> None:
        """Read the file whenever it is requested, until cancelled.

        All requests that arrive during one reading are answered by the next one.
        """
        try:
            while True:
                while self._answered == self._asked_for:
                    await self._asked.wait()
                number = self._asked_for
                with self.reloading():
                    self._latest = await self._reload_once()
                self._answered = number
                self._read.set()
        finally:
            self._has_ended = True
            self._read.set()

    async def _reload_once(self) -> Reloaded:
        """Read the file in a thread, and apply it in one step; a bad one changes nothing."""
        path = self.config.path
        try:
            if path is None:
                raise ConfigError(["the config comes from no file"])
            new = await trio.to_thread.run_sync(self._load, path, abandon_on_cancel=True)
            fixed = self.apply(new)
        except ConfigError as error:
            mistakes = error.lines
        except Exception as error:
            # No file may crash llmux, and neither may a lack of threads or memory.
            log.exception("reload_broke", config=str(path))
            mistakes = [f"{path}: cannot be loaded: {error}"]
        else:
            return self._told(ok=True, needs_restart=fixed)
        log.error("reload_failed", config=str(path), mistakes=mistakes)
        return self._told(ok=False, mistakes=mistakes)

    def _load(self, path: Path) -> Config:
        return self._complete(load_config(path))

    def _told(self, **how: Any) -> Reloaded:
        now = self._events.clock.now()
        reloaded = Reloaded(at=now, models=list(self.config.models), **how)
        self._events.reloaded.tell(reloaded)
        return reloaded

    def apply(self, new: Config) -> list[str]:
        """Apply another config.

        Returns:
            The keys whose new values need a restart.

        Raises:
            ConfigError: It cannot be applied, and nothing has changed.
        """
        old = self.config
        mistakes = [*self.vet(new), *self._board.refuses(new)]
        if mistakes:
            raise mistaken(mistakes, new.source)
        # Before anything changes, since the constructor of a user's policy may raise.
        policies = self._board.policies_for(new)
        start = self._started_with
        fixed = [key for key in FIXED if _value(start, key) != _value(new, key)]
        if (start.tls is None) != (new.tls is None):
            fixed.append("tls")
        if fixed:
            log.warning("needs_restart", keys=fixed)
        self.config = new
        for user in self._users:
            user(new)
        self._board.apply(old, new, policies, self._use)
        log.info("reloaded", config=str(new.path), models=list(new.models))
        return fixed

    def _use(self, name: str, model: ModelConfig | None) -> None:
        log.info("model_removed" if model is None else "model_changed", model=name)
        for user in self._model_users:
            user(name, model)

    async def watch(self) -> None:
        """Reload whenever the file changes, until cancelled."""
        path = self.config.path
        assert path is not None
        seen = _stamp(path)
        while True:
            await trio.sleep(WATCH_S)
            now = _stamp(path)
            # Wait until the file stays unchanged: an editor may still be writing it.
            if now is not None and now != seen:
                await trio.sleep(WATCH_S / 4)
                if _stamp(path) == now:
                    seen = now
                    self.request()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _value(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
