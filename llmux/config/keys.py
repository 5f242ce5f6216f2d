"""API keys: read them from the config, and look for them in requests.

No message and no `repr` contains the text of a key.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmux.base.plainfiles import read_regular

MASK = "***"

MOST_FILE_BYTES = 1 << 20
"""A larger file holds no keys: ten thousand of a hundred characters fit."""

PROTOCOLS = b"sec-websocket-protocol"
"""The header with the key of a browser's WebSocket: pages can set no other header of one."""

KEY_PROTOCOL = b"openai-insecure-api-key."
"""Prefix of the key in that header (OpenAI's realtime API)."""

PLAIN = frozenset({b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Headers that hold nothing but a key: Anthropic's, Azure's, Google's."""

_KEY = re.compile(rb"[!-~]+")


class KeyRing:
    """An immutable set of keys with equal rights.

    Attributes:
        variables: Environment variables that some of them were read from.
    """

    __slots__ = ("_keys", "variables")

    def __init__(self, keys: Iterable[bytes] = (), variables: Iterable[str] = ()) -> None:
        self._keys = tuple(keys)
        self.variables = frozenset(variables)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join([MASK] * len(self._keys))})"

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyRing):
            return NotImplemented
        return (self._keys, self.variables) == (other._keys, other.variables)

    def __hash__(self) -> int:
        return hash((self._keys, self.variables))

    def __or__(self, other: KeyRing) -> KeyRing:
        """Return a ring with the keys of both."""
        return KeyRing((*self._keys, *other._keys), self.variables | other.variables)

    @property
    def texts(self) -> tuple[str, ...]:
        """The keys themselves, for masking them in logs."""
        return tuple(key.decode("ascii") for key in self._keys)

    def accepts(self, headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
        """Return the lower-case names of the headers that carry one of the keys.

        Args:
            headers: Headers of a request, as received.
        """
        carriers = set()
        for name, value in headers:
            lower = name.lower()
            if any(self._holds(key) for key in _credentials(lower, value)):
                carriers.add(lower)
        return frozenset(carriers)

    def without(
        self, headers: Iterable[tuple[bytes, bytes]], carriers: frozenset[bytes]
    ) -> list[tuple[bytes, bytes]]:
        """Return the headers without the keys.

        Args:
            headers: Headers of a request.
            carriers: Result of `accepts` for them.
        """
        kept = []
        for name, value in headers:
            lower = name.lower()
            if lower not in carriers:
                kept.append((name, value))
            elif lower == PROTOCOLS and (rest := self._other_protocols(value)):
                kept.append((name, rest))
        return kept

    def _other_protocols(self, value: bytes) -> bytes:
        others = [
            each for each in of_list(value) if not (_is_key(each) and self._holds(_key_of(each)))
        ]
        return b", ".join(others)

    def _holds(self, sent: bytes) -> bool:
        found = False
        for key in self._keys:  # all of them, so that the time does not reveal which one matched
            # In this order, since it takes as long as its second argument is.
            found |= hmac.compare_digest(sent, key)
        return found


def of_list(value: bytes) -> list[bytes]:
    """Split a header that is a list into its items."""
    return [item for each in value.split(b",") if (item := each.strip())]


def _credentials(name: bytes, value: bytes) -> Iterator[bytes]:
    """Yield the keys that a header carries; none if it is not a header for keys."""
    if name in PLAIN:
        yield value.strip()
    elif name == b"authorization":
        scheme, _, key = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            yield key.strip()
    elif name == PROTOCOLS:
        yield from map(_key_of, filter(_is_key, of_list(value)))


def _is_key(protocol: bytes) -> bool:
    return protocol.startswith(KEY_PROTOCOL)


def _key_of(protocol: bytes) -> bytes:
    return protocol.removeprefix(KEY_PROTOCOL)


# ---- From the config ----


def read_keys(item: object, directory: Path) -> tuple[bytes, ...]:
    """Read the keys of one item of the config's lists, at least one.

    Args:
        item: A key, `{file: PATH}` or `{env: NAME}`.
        directory: Base folder of relative paths.

    Raises:
        ValueError: There is no key, or one that cannot be sent.
    """
    if isinstance(item, str):
        return (_checked(item, "the key"),)
    # An unknown mapping's keys are not named: they may be what should have been kept secret.
    match item:
        case {"file": str(path), **rest} if not rest:
            return _read_file(path, directory)
        case {"env": str(name), **rest} if not rest:
            return _read_variable(name)
    raise ValueError("expected a key in quotes, {file: PATH} or {env: NAME}")


def _read_file(text: str, directory: Path) -> tuple[bytes, ...]:
    try:
        path = directory / Path(text).expanduser()
        lines = read_regular(path, MOST_FILE_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:  # its text would contain the bytes
        raise ValueError(f"the file {text!r} is not UTF-8 text") from None
    except (OSError, RuntimeError, ValueError) as error:  # no such ~user, no possible path
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise ValueError(f"the file {text!r} cannot be read: {reason}") from None
    keys = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = tuple(
        _checked(key, f"line {number} of the file {text!r}")
        for number, key in keys
        if key and not key.startswith("#")
    )
    if not found:
        raise ValueError(f"the file {text!r} holds no key: write one a line")
    return found


def _read_variable(name: str) -> tuple[bytes, ...]:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("expected the name of an environment variable, as in {env: MY_KEYS}")
    text = os.environ.get(name)
    if text is None:
        raise ValueError(f"the environment variable {name} is not set")
    found = tuple(
        _checked(key, f"a key in the environment variable {name}")
        for key in re.split(r"[,\s]+", text)
        if key
    )
    if not found:
        raise ValueError(
            f"the environment variable {name} holds no key: give some, separated by commas"
        )
    return found


def _checked(key: str, what: str) -> bytes:
    """Return a key that every client can send in a header (RFC 9110, section 5.5)."""
    raw = key.encode("utf-8", "surrogatepass")
    if not raw:
        raise ValueError(f"{what} is empty")
    if not _KEY.fullmatch(raw):
        raise ValueError(f"{what} must be visible ASCII characters, without spaces")
    return raw
