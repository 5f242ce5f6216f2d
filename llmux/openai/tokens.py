"""Tokens of answers, as the servers themselves count them, and how many come in a second.

An answer says it at its end, and some say a part of it at their beginning: so those are looked at,
once, when it is over. Nothing is guessed: an answer that does not say it has no tokens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from llmux.http.chunks import without_chunk_heads
from llmux.http.syntax import Headers
from llmux.observe.schemas import TokenRates
from llmux.openai.headers import header
from llmux.openai.streams import EVENT_STREAM, media_type

LOOK_BYTES = 16384
"""How much of an answer's end is looked at."""

MOST_LINES = 16
"""How many lines of a stream are looked at, from its end."""

MOST_TOKENS = 100_000_000
"""More are no number of tokens of one request."""

RECENT_S = 60
SLOT_S = 5
"""Rates are of the last minute, in steps of this many seconds."""


class Tokens(NamedTuple):
    """The tokens of a request; None: its answer does not say.

    Attributes:
        prompt: Of what was asked, those from a cache included.
        completion: Of the answer.
        cached: Those of `prompt` that came from a cache.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


NO_TOKENS = Tokens()

KINDS = Tokens._fields
"""Every value of the label `kind`."""


# ---- Finding them ----


class _Said(msgspec.Struct):
    """What may be at the top of an answer or of a stream's event."""

    usage: Any = None  # OpenAI, Anthropic
    timings: Any = None  # llama.cpp
    prompt_eval_count: Any = None  # Ollama
    eval_count: Any = None
    response: msgspec.Raw = msgspec.Raw()  # OpenAI's events of /v1/responses
    message: msgspec.Raw = msgspec.Raw()  # Anthropic's event message_start


_decode = msgspec.json.Decoder(_Said).decode

_KEYS = (b'"usage"', b'"timings"', b'"prompt_eval_count"', b'"eval_count"')

_OPENINGS = (b"{", b'{"response":{')
"""What a key may stand in. If it stands in more, what follows it does not close these only."""


def tokens_of(headers: Headers, opening: bytes, ending: bytes, *, is_chunked: bool) -> Tokens:
    """The tokens that an answer tells of.

    Args:
        headers: Of the answer.
        opening: The beginning of its body, as it came over the wire.
        ending: The end of its body, as it came over the wire.
        is_chunked: Whether there is the framing of chunks in both.
    """
    ending = ending[-LOOK_BYTES:]
    if is_chunked:
        opening, ending = without_chunk_heads(opening), without_chunk_heads(ending)
    if not (_may_tell(ending) or _may_tell(opening)):  # nearly all that have none
        return NO_TOKENS
    if header(headers, b"content-encoding").lower() not in {b"", b"identity"}:
        return NO_TOKENS
    kind = media_type(headers)
    if kind == EVENT_STREAM:
        return _of_events(opening, ending)
    if b"json" not in kind:
        return NO_TOKENS
    found = _of_object(ending)
    return _of_lines(reversed(ending.splitlines())) if found == NO_TOKENS else found


def _may_tell(data: bytes) -> bool:
    return b'"usage"' in data or b'eval_count"' in data or b'"timings"' in data


def _of_events(opening: bytes, ending: bytes) -> Tokens:
    cut, *lines = ending.splitlines() or [b""]
    events = [line[5:] for line in reversed(lines) if line.startswith(b"data:")]
    found = _of_lines([*events, cut.removeprefix(b"data:")])
    if b'"message_start"' not in opening:
        return found
    # Anthropic's first event has the prompt, and the last one may have it, too, or 0.
    first = NO_TOKENS
    for line in opening.splitlines():
        if line.startswith(b"data:") and (said := _read(line[5:])) is not None and said.message:
            inner = _read(bytes(said.message))
            first = NO_TOKENS if inner is None else _of_said(inner)
            break
    return Tokens(found.prompt or first.prompt, found.completion, found.cached or first.cached)


def _of_lines(lines: Iterable[bytes]) -> Tokens:
    """Of the first of these lines that tells of some."""
    for line in islice(lines, MOST_LINES):
        if _may_tell(line) and (found := _of_object(line)) != NO_TOKENS:
            return found
    return NO_TOKENS


def _of_object(text: bytes) -> Tokens:
    """Of a JSON object, of which the beginning may be missing."""
    if (said := _read(text)) is not None:
        return _of_said(said)
    for key in _KEYS:
        if (start := text.rfind(key)) < 0:
            continue
        for before in _OPENINGS:
            if (said := _read(before + text[start:])) is not None:
                return _of_said(said)
    return NO_TOKENS


def _read(text: bytes) -> _Said | None:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _of_said(said: _Said) -> Tokens:
    if said.response and isinstance(inner := _read(bytes(said.response)), _Said):
        said.usage = said.usage or inner.usage
    for found in (_of_usage(said.usage), _of_timings(said.timings)):
        if found != NO_TOKENS:
            return found
    return Tokens(_number(said.prompt_eval_count), _number(said.eval_count))


def _of_usage(usage: Any) -> Tokens:
    """OpenAI's two forms, and Anthropic's, in which the prompt is counted without its cache."""
    if not isinstance(usage, dict):
        return NO_TOKENS
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        cached = _inside(usage, "prompt_tokens_details")
        if cached is None:
            cached = usage.get("prompt_cache_hit_tokens")  # DeepSeek
        return _tokens(_number(prompt), _number(completion), _number(cached))
    prompt, completion = _number(usage.get("input_tokens")), _number(usage.get("output_tokens"))
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        cached = _number(usage.get("cache_read_input_tokens"))
        if prompt is not None:
            prompt += (cached or 0) + (_number(usage.get("cache_creation_input_tokens")) or 0)
        return _tokens(prompt, completion, cached)
    return _tokens(prompt, completion, _number(_inside(usage, "input_tokens_details")))


def _of_timings(timings: Any) -> Tokens:
    """llama.cpp's, where `prompt_n` are those that were not in its cache."""
    if not isinstance(timings, dict):
        return NO_TOKENS
    prompt, cached = _number(timings.get("prompt_n")), _number(timings.get("cache_n"))
    if prompt is not None:
        prompt += cached or 0
    return _tokens(prompt, _number(timings.get("predicted_n")), cached)


def _inside(usage: dict[str, Any], key: str) -> Any:
    details = usage.get(key)
    return details.get("cached_tokens") if isinstance(details, dict) else None


def _tokens(prompt: int | None, completion: int | None, cached: int | None) -> Tokens:
    is_part = cached is not None and prompt is not None and cached <= prompt
    return Tokens(prompt, completion, cached if is_part else None)


def _number(value: Any) -> int | None:
    """A number of tokens, if it is one: no truth value, nothing negative, nothing absurd."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


# ---- How many a second ----


class Recent:
    """How many there were in the last minute, in steps of a few seconds."""

    __slots__ = ("_counts", "_slot")

    def __init__(self) -> None:
        self._counts = [0] * (RECENT_S // SLOT_S)
        self._slot = 0

    def add(self, count: int, now: float) -> None:
        """There were some more; `now` in seconds."""
        self._turn(now)
        self._counts[self._slot % len(self._counts)] += count

    def per_second(self, now: float) -> float:
        """Their mean over the minute."""
        self._turn(now)
        return round(sum(self._counts) / RECENT_S, 1)

    def _turn(self, now: float) -> None:
        """Forget what is older than a minute."""
        slot = int(now // SLOT_S)
        for passed in range(self._slot + 1, min(slot, self._slot + len(self._counts)) + 1):
            self._counts[passed % len(self._counts)] = 0
        self._slot = max(slot, self._slot)


class Rates:
    """Tokens of answers a second, by model.

    Args:
        now: The time of what is told, in seconds since 1970.
        clock: The time that passes, in seconds.
    """

    def __init__(self, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._now = now
        self._clock = clock
        self._recent: dict[str, Recent] = {}
        self._told: dict[str, float] = {}

    def add(self, model: str, count: int) -> None:
        """A model's answer had so many."""
        recent = self._recent.get(model)
        if recent is None:
            recent = self._recent[model] = Recent()
        recent.add(count, self._clock())

    def per_second(self, model: str) -> float:
        """How many a second it was in the last minute."""
        recent = self._recent.get(model)
        return 0.0 if recent is None else recent.per_second(self._clock())

    def news(self) -> tuple[str, TokenRates] | None:
        """What has changed since this was called last, for the feed."""
        rates = {model: self.per_second(model) for model in self._recent}
        changed = {model: rate for model, rate in rates.items() if self._told.get(model) != rate}
        self._told = rates
        return ("tokens", TokenRates(at=self._now(), models=changed)) if changed else None
