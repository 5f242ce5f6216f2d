"""Token counts of responses, as reported by the backends, and tokens per second by model.

Backends report usage at the end of a response, and Anthropic's API a part of it at the start. So
the two ends are searched once, after the response; nothing is parsed while it is relayed. Nothing
is estimated: a response without usage has no counts.
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
from llmux.openai.streams import EVENT_STREAM, event_data, media_type

LOOK_BYTES = 16384
"""Bytes at the end of a response that are searched."""

MAX_LINES = 16
"""Lines at the end of a stream that are searched."""

MAX_TOKENS = 100_000_000
"""Limit for one request; a larger count is ignored, since it would spoil the metrics for good."""

WINDOW_S = 60
SLOT_S = 5
"""Rates are means over the last minute, which slides in steps of a slot."""


class Tokens(NamedTuple):
    """Token counts of a request; None for those that the response does not report.

    Attributes:
        prompt: Tokens of the prompt, including those from a cache.
        completion: Tokens generated.
        cached: Tokens of the prompt that came from a cache.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


NO_TOKENS = Tokens()


# ---- Finding counts ----


class _Usage(msgspec.Struct):
    """Members that may report usage, at the top of a response or of a stream's event."""

    usage: Any = None  # OpenAI, Anthropic
    timings: Any = None  # llama.cpp
    prompt_eval_count: Any = None  # Ollama
    eval_count: Any = None
    response: msgspec.Raw = msgspec.Raw()  # the events of OpenAI's /v1/responses
    message: msgspec.Raw = msgspec.Raw()  # Anthropic's event message_start


_decode = msgspec.json.Decoder(_Usage).decode

_KEYS = (b'"usage"', b'"timings"', b'"prompt_eval_count"', b'"eval_count"')

_OPENINGS = (b"{", b'{"response":{')
"""Objects that may contain such a key: put before the key, they complete a text whose beginning is
missing. A key nested otherwise leaves brackets unmatched, so that decoding fails."""


def tokens_of(headers: Headers, opening: bytes, ending: bytes, *, is_chunked: bool) -> Tokens:
    """Read the token counts that a response reports.

    `opening` and `ending` are the first and last bytes of its body as they came over the wire: in
    chunks if `is_chunked`.
    """
    ending = ending[-LOOK_BYTES:]
    if is_chunked:
        opening, ending = without_chunk_heads(opening), without_chunk_heads(ending)
    if not (_mentions_usage(ending) or _mentions_usage(opening)):  # cheap, and mostly decisive
        return NO_TOKENS
    if header(headers, b"content-encoding").lower() not in {b"", b"identity"}:
        return NO_TOKENS
    kind = media_type(headers)
    if kind == EVENT_STREAM:
        return _from_events(opening, ending)
    if b"json" not in kind:
        return NO_TOKENS
    found = _from_object(ending)
    return _from_lines(reversed(ending.splitlines())) if found == NO_TOKENS else found


def _mentions_usage(data: bytes) -> bool:
    return b'"usage"' in data or b'eval_count"' in data or b'"timings"' in data


def _from_events(opening: bytes, ending: bytes) -> Tokens:
    # The first line may have lost its beginning: a long event with usage at its end.
    found = _from_lines(reversed(event_data(b"data:" + ending.removeprefix(b"data:"))))
    if b'"message_start"' not in opening:
        return found
    # Anthropic's first event counts the prompt; the last one may repeat the count, or say 0.
    first = NO_TOKENS
    for data in event_data(opening):
        if (event := _read(data)) is not None and event.message:
            message = _read(bytes(event.message))
            first = NO_TOKENS if message is None else _counts(message)
            break
    return Tokens(found.prompt or first.prompt, found.completion, found.cached or first.cached)


def _from_lines(lines: Iterable[bytes]) -> Tokens:
    """Read the counts of the first line that reports any."""
    for line in islice(lines, MAX_LINES):
        if _mentions_usage(line) and (found := _from_object(line)) != NO_TOKENS:
            return found
    return NO_TOKENS


def _from_object(text: bytes) -> Tokens:
    """Read the counts of a JSON object whose beginning may be missing."""
    if (usage := _read(text)) is not None:
        return _counts(usage)
    for key in _KEYS:
        if (start := text.rfind(key)) < 0:
            continue
        for before in _OPENINGS:
            if (usage := _read(before + text[start:])) is not None:
                return _counts(usage)
    return NO_TOKENS


def _read(text: bytes) -> _Usage | None:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _counts(found: _Usage) -> Tokens:
    if found.response and isinstance(inner := _read(bytes(found.response)), _Usage):
        found.usage = found.usage or inner.usage
    for tokens in (_from_usage(found.usage), _from_timings(found.timings)):
        if tokens != NO_TOKENS:
            return tokens
    return Tokens(_number(found.prompt_eval_count), _number(found.eval_count))


def _from_usage(usage: Any) -> Tokens:
    """Read either form of OpenAI's `usage`, or Anthropic's."""
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
        if prompt is not None:  # Anthropic's input_tokens leave out the cache
            prompt += (cached or 0) + (_number(usage.get("cache_creation_input_tokens")) or 0)
        return _tokens(prompt, completion, cached)
    return _tokens(prompt, completion, _number(_inside(usage, "input_tokens_details")))


def _from_timings(timings: Any) -> Tokens:
    """Read llama.cpp's `timings`, whose `prompt_n` leaves out tokens from the cache."""
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
    """Return a token count; None for a boolean, a negative or implausible number, or no number."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


# ---- Tokens per second ----


class SlidingCount:
    """A count over the last minute; times are in seconds, on any monotonic clock."""

    __slots__ = ("_counts", "_slot")

    def __init__(self) -> None:
        self._counts = [0] * (WINDOW_S // SLOT_S)  # a ring, indexed by slot modulo its length
        self._slot = 0

    def add(self, count: int, now: float) -> None:
        self._advance(now)
        self._counts[self._slot % len(self._counts)] += count

    def per_second(self, now: float) -> float:
        self._advance(now)
        return round(sum(self._counts) / WINDOW_S, 1)

    def _advance(self, now: float) -> None:
        """Clear the slots that began since the last call."""
        slot = int(now // SLOT_S)
        for passed in range(self._slot + 1, min(slot, self._slot + len(self._counts)) + 1):
            self._counts[passed % len(self._counts)] = 0
        self._slot = max(slot, self._slot)


class Rates:
    """Tokens generated per second, by model.

    Args:
        now: Returns the Unix time, for the feed's events, in seconds.
        clock: Returns the time of a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._now = now
        self._clock = clock
        self._generated: dict[str, SlidingCount] = {}
        self._published: dict[str, float] = {}

    def add(self, model: str, count: int) -> None:
        """Count the tokens of a finished response."""
        generated = self._generated.get(model)
        if generated is None:
            generated = self._generated[model] = SlidingCount()
        generated.add(count, self._clock())

    def per_second(self, model: str) -> float:
        generated = self._generated.get(model)
        return 0.0 if generated is None else generated.per_second(self._clock())

    def news(self) -> tuple[str, TokenRates] | None:
        """Return the rates that have changed since the last call, as an event for the feed."""
        rates = {model: self.per_second(model) for model in self._generated}
        changed = {
            model: rate for model, rate in rates.items() if self._published.get(model) != rate
        }
        self._published = rates
        return ("tokens", TokenRates(at=self._now(), models=changed)) if changed else None
