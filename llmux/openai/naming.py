"""Find the model that a request names: in a header, the path, the body or the query.

`Meanings` answers the reverse question: which of llmux's models a name may stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llmux.base.names import MAX_NAME_BYTES, folded, overlong
from llmux.base.wildcards import Names, Patterns, is_pattern
from llmux.errors import BadRequest, LoopDetected, NoModel
from llmux.http.paths import UPSTREAM, merged
from llmux.http.syntax import Headers
from llmux.openai.fields import Fields
from llmux.openai.forms import MAX_ENCODED_BYTES, urlencoded_fields
from llmux.openai.headers import OVERRIDE, VIA


class Named(NamedTuple):
    """Model that a request names, and the target to forward.

    Attributes:
        name: Name as the client wrote it: a model's, an alias, or an unknown one.
        target: Raw path and query, without the model's name if the path had it.
    """

    name: str
    target: bytes


def find_model(
    target: bytes,
    headers: Headers,
    fields: Fields,
    names: Collection[str],
    pseudonym: bytes = b"",
) -> Named:
    """Return the model that a request names: in `model-override`, path, body or query, in order.

    `names` are all names that clients may use, without which a name in a path has no clear end:
    names may contain slashes. `pseudonym` is the name in `Via` by which this llmux knows its own
    requests; empty to accept them.

    Raises:
        LoopDetected: The request has come from this llmux.
        NoModel: The request names no model.
        BadRequest: The body names two models, or may name one but cannot be read.
    """
    override = _override(headers, pseudonym)
    if fields.is_ambiguous:
        # Parsers differ on which of two equal keys they take, and on whether case matters: the
        # backend could read another model than llmux.
        raise BadRequest("The request names two models: its body has two different values 'model'")
    if override:
        return Named(_text(override), target)
    if (named := _named_by_path(target, names)) is not None:
        return named
    if name := fields.name or _model_of_query(target):
        return Named(name, target)
    if fields.mistake:
        raise BadRequest(fields.mistake)
    raise NoModel


def _override(headers: Headers, pseudonym: bytes) -> bytes:
    """Return the model that `model-override` names; raises LoopDetected if `Via` names llmux."""
    found = None
    for name, value in headers:
        # Not `header`: every request passes here, and a constant length takes half the time.
        length = len(name)
        if length == 14 and found is None and name.lower() == OVERRIDE:
            found = value.strip()
        elif length == 3 and pseudonym and name.lower() == VIA and pseudonym in value:
            raise LoopDetected
    return found or b""


def _text(raw: bytes) -> str:
    if len(raw) > MAX_NAME_BYTES:
        return overlong(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _named_by_path(target: bytes, names: Collection[str]) -> Named | None:
    """Read `/upstream/<model>/<rest>`: the longest known name, or else the first segment."""
    path, mark, query = target.partition(b"?")
    found: Named | None = None
    if path.startswith(UPSTREAM):
        found, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
        if is_known or b"//" not in path:
            return found
    elif not path.startswith(b"//"):
        return None
    # Doubled slashes are ignored, but only if no known name contains them.
    path = merged(path)
    if not path.startswith(UPSTREAM):
        return found
    by_merged, is_known = _named_segments(path.removeprefix(UPSTREAM), mark + query, names)
    return by_merged if is_known or not target.startswith(UPSTREAM) else found


def _named_segments(path: bytes, query: bytes, names: Collection[str]) -> tuple[Named | None, bool]:
    """Return the model that a path's first segments name, and whether it is known."""
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
    if known is None and patterns is not None:  # exact names take precedence over patterns
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
    """The models that a name may stand for, in llmux or in a backend that serves several models.

    Args:
        models: For each model: its name, its aliases, its backend's URL, and the name to send to
            the backend (None to send the client's).
    """

    def __init__(self, models: Iterable[tuple[str, Iterable[str], str, str | None]]) -> None:
        self._by_name: dict[str, set[str]] = {}
        self._by_upstream_name: dict[tuple[str, str], set[str]] = {}
        self._backends: dict[str, str] = {}
        wild: dict[str, str] = {}
        for model, aliases, backend, upstream_model in models:
            self._backends[model] = backend
            for name in (model, *aliases):
                if name != model and is_pattern(name):
                    wild[folded(name)] = model
                else:
                    self._by_name.setdefault(folded(name), set()).add(model)
            if upstream_model is not None:
                key = (backend, folded(upstream_model))
                self._by_upstream_name.setdefault(key, set()).add(model)
        self._patterns = Patterns(wild) if wild else None

    def _meant_by(self, key: str, backend: str | None) -> Collection[str]:
        """Return the models that a folded name stands for; patterns count for one backend only.

        A name that only a pattern matches is not in the config, so no other backend can know it.
        """
        meant = self._by_name.get(key)
        if meant is None and self._patterns is not None:
            model = self._patterns.find(key)
            if model is not None and self._backends[model] == backend:
                return (model,)
        return meant or _NO_MODELS

    def is_own(self, name: str, model: str) -> bool:
        """Return whether a name is one of the model's own."""
        return model in self._meant_by(folded(name), self._backends.get(model))

    def is_other(self, name: str, model: str) -> bool:
        """Return whether the model's backend may read a name as another of llmux's models."""
        key = folded(name)
        backend = self._backends.get(model, "")
        meant = self._meant_by(key, backend)
        meant_upstream = self._by_upstream_name.get((backend, key), _NO_MODELS)
        is_known = bool(meant or meant_upstream)
        return is_known and model not in meant and model not in meant_upstream


_NO_MODELS: frozenset[str] = frozenset()
