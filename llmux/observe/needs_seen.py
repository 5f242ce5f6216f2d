"""The most that each model was seen to hold of each resource, for `needs: auto`.

It is kept in `state_dir`, so that a model is measured once and not after each restart of llmux, and
forgotten when the model's config changes in what its server may hold.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llmux.base.plainfiles import open_own, read_own
from llmux.config import Config, ModelConfig
from llmux.observe.logs import get_logger

FILE_NAME = "needs.json"

MOST_BYTES = 16 << 20
"""Upper bound of a file that is read: enough for a hundred thousand models."""

Amount = Annotated[int, Meta(ge=0, le=1 << 60)]

log = get_logger(__name__)


class _Seen(msgspec.Struct, frozen=True):
    """What a model was seen to hold.

    Attributes:
        digest: `digest_of` its config.
        amounts: Bytes by resource.
    """

    digest: str
    amounts: dict[str, Amount]


class _File(msgspec.Struct, frozen=True):
    models: dict[str, _Seen]


class SeenNeeds:
    """The largest amounts of one config's models.

    If they cannot be written, that is logged and llmux goes on: they are measured again after the
    next start.

    Args:
        path: The file; None to keep none.
        config: Whose models and resources.
    """

    def __init__(self, path: Path | None, config: Config) -> None:
        self._path = path
        self._config = config
        self._seen: dict[str, _Seen] = {}
        self._has_failed = False

    def load(self) -> None:
        """Read what earlier llmux have seen; a file that cannot be read counts as empty."""
        try:
            self.read()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("needs_unreadable", path=str(self._path), error=str(error))

    def read(self) -> None:
        """Read what earlier llmux have seen; no file counts as an empty one.

        Raises:
            OSError, msgspec.MsgspecError: It cannot be read.
        """
        if self._path is None:
            return
        with suppress(FileNotFoundError):
            self._seen = msgspec.json.decode(read_own(self._path, MOST_BYTES), type=_File).models

    def use(self, config: Config) -> None:
        """Use another config from now on."""
        self._config = config

    def under(self, config: Config) -> Mapping[str, Mapping[str, int]]:
        """Use a config from now on, and return `all`."""
        self.use(config)
        return self.all()

    def of(self, model: str) -> Mapping[str, int] | None:
        """Return the most that a model was seen to hold: bytes by resource, without a margin.

        A resource that is missing is not used. None if the model was not measured yet, or only with
        another config.
        """
        seen = self._current(model)
        return None if seen is None else seen.amounts

    def all(self) -> dict[str, Mapping[str, int]]:
        """Return `of` for the models that were measured."""
        found = {name: self.of(name) for name in self._config.models}
        return {name: amounts for name, amounts in found.items() if amounts is not None}

    def note(self, model: str, amounts: Mapping[str, int]) -> bool:
        """Keep what a model was measured to hold, where it is more than before.

        Args:
            model: Its name; of one that the config does not have, nothing is kept.
            amounts: Bytes by resource.

        Returns:
            True if `of` has changed.
        """
        config = self._config.models.get(model)
        if config is None:
            return False
        seen = self._current(model)
        known = {} if seen is None else seen.amounts
        most = {name: max(amounts.get(name, 0), known.get(name, 0)) for name in {*amounts, *known}}
        now = _Seen(
            self._digest(config), {name: size for name, size in sorted(most.items()) if size}
        )
        if now == seen:
            return False
        self._seen[model] = now
        self._write()
        return True

    def _current(self, model: str) -> _Seen | None:
        config, seen = self._config.models.get(model), self._seen.get(model)
        if config is None or seen is None or seen.digest != self._digest(config):
            return None
        return seen

    def _digest(self, model: ModelConfig) -> str:
        return digest_of(model, self._config.resources)

    def _write(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        kept = {name: seen for name, seen in self._seen.items() if name in self._config.models}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A leftover of an interrupted write, or a link that another user has planted.
            new.unlink(missing_ok=True)
            with os.fdopen(open_own(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(msgspec.json.encode(_File(kept)) + b"\n")
            new.replace(self._path)
        except OSError as error:
            if not self._has_failed:  # once, until it works again
                hint = "after a restart, llmux measures the models again"
                log.error("needs_not_written", path=str(self._path), error=str(error), hint=hint)
            self._has_failed = True
        else:
            self._has_failed = False


def digest_of(model: ModelConfig, resources: Mapping[str, int]) -> str:
    """Return a digest of all that decides what a model's server holds, and of what is measured."""
    about = (
        model.wake,
        model.memory,
        model.address,
        sorted(model.variables.items()),
        sorted(resources),
    )
    return hashlib.sha256(msgspec.json.encode(about)).hexdigest()
