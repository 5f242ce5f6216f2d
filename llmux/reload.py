"""From one config to the next while serving: what changes at once, what waits, what cannot.

Names, keys, limits and the policy change at once. A model whose server or hooks have changed gets
them when it sleeps next, for which it is drained at once if it is awake; one that is gone serves
those who still wait for it, and is then put to sleep with the hooks it had. All else goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from llmux.config import Config, ModelConfig, load_config
from llmux.errors import ConfigError
from llmux.feed import Feed
from llmux.logs import get_logger
from llmux.policy import load_policy
from llmux.shapes import Reloaded
from llmux.switchboard import Switchboard

WATCH_S = 1.0
"""How often the file is looked at."""

FIXED = (
    "host",
    "port",
    "state_dir",
    "journal",
    "tracing",
    "control",
    "limits.connections",
    "limits.client_stall_secs",
)
"""What is used from the start on only."""

log = get_logger(__name__)


class Reloader:
    """Reads a config again, and has everybody use it.

    Attributes:
        config: The one that is used now.
    """

    def __init__(self, config: Config, board: Switchboard, feed: Feed | None = None) -> None:
        """Do nothing yet.

        Args:
            config: What is served.
            board: Its switchers.
            feed: Who is told.
        """
        self.config = config
        self._started_with = config
        self._board = board
        self._feed = feed or Feed()
        self._users: list[Callable[[Config], None]] = []
        self._model_users: list[Callable[[str, ModelConfig | None], None]] = []

    def tell(
        self,
        user: Callable[[Config], None] | None = None,
        *,
        of_models: Callable[[str, ModelConfig | None], None] | None = None,
    ) -> None:
        """Have somebody told.

        Args:
            user: Called with each new config.
            of_models: Called with each model that has changed once that may be used, and with None
                once it is gone.
        """
        if user is not None:
            self._users.append(user)
        if of_models is not None:
            self._model_users.append(of_models)

    def reload(self) -> Reloaded:
        """Read the file again; a bad one is logged and changes nothing."""
        path = self.config.path
        try:
            if path is None:
                raise ConfigError(["the config comes from no file"])
            fixed = self.apply(load_config(path))
        except ConfigError as error:
            log.error("reload_failed", config=str(path), mistakes=error.mistakes)
            return self._told(ok=False, mistakes=error.mistakes)
        return self._told(ok=True, needs_restart=fixed)

    def _told(self, **how: Any) -> Reloaded:
        now = self._feed.clock.now()
        reloaded = Reloaded(at=now, models=list(self.config.models), **how)
        self._feed.tell("reload", reloaded)
        return reloaded

    def apply(self, new: Config) -> list[str]:
        """Use another config.

        Returns:
            The keys whose new values need a restart.

        Raises:
            ConfigError: It cannot be used, and nothing has changed.
        """
        load_policy(new.policy, new.directory)  # one that cannot be made is noticed here
        old = self.config
        mistakes = list(self._board.refuses(new))
        if mistakes:
            raise ConfigError(mistakes)
        start = self._started_with
        fixed = [key for key in FIXED if _value(start, key) != _value(new, key)]
        if fixed:
            log.warning("needs_restart", keys=fixed)
        self.config = new
        for user in self._users:
            user(new)
        self._board.apply(old, new, self._use)
        log.info("reloaded", config=str(new.path), models=list(new.models))
        return fixed

    def _use(self, name: str, model: ModelConfig | None) -> None:
        log.info("model_removed" if model is None else "model_changed", model=name)
        for user in self._model_users:
            user(name, model)

    async def watch(self) -> None:
        """Reload whenever the file changes, for ever."""
        path = self.config.path
        assert path is not None
        seen = _stamp(path)
        while True:
            await trio.sleep(WATCH_S)
            now = _stamp(path)
            # Not while it is being written: an editor may take a moment.
            if now is not None and now != seen:
                await trio.sleep(WATCH_S / 4)
                if _stamp(path) == now:
                    seen = now
                    self.reload()


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
