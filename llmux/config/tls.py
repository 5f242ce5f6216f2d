"""The section of the config that names the certificate of llmux's own TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmux.config.environment import FromVariables
from llmux.config.section import Completed, NotAKey, Section
from llmux.http.certificates import BadPair, Pair, load_pair


class TlsConfig(Section, frozen=True, kw_only=True):
    """The certificate and the key with which llmux's ports speak TLS.

    Attributes:
        cert: PEM file with the certificate of llmux, followed by the rest of its chain; relative
            to the config's folder.
        key: PEM file with its private key, without a password; may be the same file.
        pair: The two, as they were read with the config.
    """

    cert: Path
    key: Path
    pair: NotAKey[Pair]

    @staticmethod
    def completed(given: Mapping[Any, Any], directory: Path) -> Completed:
        """Read the files that it names."""
        cert, key = (_path(given.get(name), directory) for name in ("cert", "key"))
        if cert is None or key is None:
            return Completed(given, {"pair": None})  # there is a mistake, or there will be one
        try:
            return Completed(given, {"pair": load_pair(cert, key)})
        except BadPair as error:
            return Completed(given, {"pair": None}, [((error.which,), error.message)])


def _path(value: object, directory: Path) -> Path | None:
    is_missing = isinstance(value, FromVariables) and value.is_missing
    if not isinstance(value, str) or not value.strip() or "\0" in value or is_missing:
        return None
    try:
        return (directory / Path(value).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):
        return None
