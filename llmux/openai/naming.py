"""Find the model that a request names: in a header, its path, its body or its query."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llmux.base.names import MAX_NAME_BYTES, folded, overlong
from llmux.base.wildcards import Names, Patterns, is_pattern
from llmux.errors import BadRequest, NoModel
from llmux.http.paths import UPSTREAM, merged
from llmux.http.syntax import Headers
from llmux.openai.fields import Fields
from llmux.openai.forms import MAX_ENCODED_BYTES, urlencoded_fields
from llmux.openai.headers import OVERRIDE


class Named(NamedTuple):
    """The name of a model in a request, and the path to forward.

    Attributes:
        name: The model, as the client wrote it: a name, an alias, or nothing known.
        target: The raw path and query to forward.
    """

    name: str
    target: bytes


def find_model(target: bytes, headers: Headers, fields: Fields, names: Collection[str]) -> Named:
    """The model that a request names; the first place that names one counts.

    Args:
        target: Raw path and query.
        headers: As received.
        fields: Of its body.
        names: Every name that clients may use; for paths, where a name may hold slashes.

    Raises:
        NoModel: It names none.
        BadRequest: Its body names two, or may name one but cannot be read.
    """
    if fields.is_ambiguous:
        # Parsers differ in which of two equal keys they take, and whether case matters, so that a
        # backend could see another model than llmux.
        raise BadRequest("The request names two models: its body has two different 'model'")
    if override := _override(headers):
        return Named(_text(override), target)
    if (named := _named_by_path(target, names)) is not None:
        return named
    if name := fields.name or _model_of_query(target):
        return Named(name, target)
    if fields.mistake:
        raise BadRequest(fields.mistake)
    raise NoModel


def _override(headers: Headers) -> bytes:
    for name, value in headers:
        if len(name) == 14 and name.lower() == OVERRIDE:  # a constant: half the time of `header`
            return value.strip()
    return b""


def _text(raw: bytes) -> str:
    if len(raw) > MAX_NAME_BYTES:
        return overlong(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _named_by_path(target: bytes, names: Collection[str]) -> Named | None:
    """`/upstream/<model>/<rest>`: the longest known name, or else the first segment."""
    path, mark, query = target.partition(b"?")
    found: Named | None = None
    if path.startswith(UPSTREAM):
        found, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
        if is_known or b"//" not in path:
            return found
    elif not path.startswith(b"//"):
        return None
    # Slashes that are too many count only where no name has them.
    path = merged(path)
    if not path.startswith(UPSTREAM):
        return found
    tidied, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
    return tidied if is_known or not target.startswith(UPSTREAM) else found


def _named_segments(path: bytes, query: bytes, names: Collection[str]) -> tuple[Named | None, bool]:
    """The model that a path's first segments name, and whether it is known."""
    patterns = names.patterns if isinstance(names, Names) else None
    most = 1 + max((name.count("/") for name in names), default=0)
    if patterns is not None:
        most = max(most, 1 + patterns.most_slashes)
    segments = path.split(b"/", most)
    counts = range(min(most, len(segments)), 0, -1)
    found = [
        _text(unquote_to_bytes(b"/".join(segments[:n])[: MAX_ENCODED_BYTES + 3])) for n in counts
    ]
    known = next((each for each in zip(counts, found, strict=True) if each[1] in names), None)
    if known is None and patterns is not None:  # a name that is written out wins
        known = next(
            (each for each in zip(counts, found, strict=True) if patterns.find_in_path(each[1])),
            None,
        )
    count, name = known or (1, found[-1])
    rest = b"/" + b"/".join(segments[count:])
    return (Named(name, rest + query) if name else None), known is not None


def _model_of_query(target: bytes) -> str:
    query = target.partition(b"?")[2]
    return next((name for name, _ in urlencoded_fields(query) if name), "")


class Meanings:
    """Which models a name may mean, to llmux or to a backend that knows several.

    Args:
        models: For each its name, all others that clients may use, where its backend is, and what
            that calls it.
    """

    def __init__(self, models: Iterable[tuple[str, Iterable[str], str, str | None]]) -> None:
        self._meant: dict[str, set[str]] = {}
        self._meant_at: dict[tuple[str, str], set[str]] = {}
        self._backends: dict[str, str] = {}
        wild: dict[str, str] = {}
        for model, aliases, backend, upstream_model in models:
            self._backends[model] = backend
            for name in (model, *aliases):
                if name != model and is_pattern(name):
                    wild[folded(name)] = model
                else:
                    self._meant.setdefault(folded(name), set()).add(model)
            if upstream_model is not None:
                key = (backend, folded(upstream_model))
                self._meant_at.setdefault(key, set()).add(model)
        self._patterns = Patterns(wild) if wild else None

    def _meant_by(self, key: str, backend: str | None) -> Collection[str]:
        """The models that a folded name means, by a pattern only those at one backend.

        No other backend can know what a name means that is not even written out here.
        """
        meant = self._meant.get(key)
        if meant is None and self._patterns is not None:
            model = self._patterns.find(key)
            if model is not None and self._backends[model] == backend:
                return (model,)
        return meant or _NOBODY

    def is_own(self, name: str, model: str) -> bool:
        """Whether a name is one of a model's own."""
        return model in self._meant_by(folded(name), self._backends.get(model))

    def is_other(self, name: str, model: str) -> bool:
        """Whether a model's backend may take a name for another of llmux's models."""
        key = folded(name)
        backend = self._backends.get(model, "")
        meant = self._meant_by(key, backend)
        meant_there = self._meant_at.get((backend, key), _NOBODY)
        return bool(meant or meant_there) and model not in meant and model not in meant_there


_NOBODY: frozenset[str] = frozenset()
