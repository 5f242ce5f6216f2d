"""Questions for a model, and verdicts on its answers; pure functions.

**An answer by itself** is unfit if its status is not 200, if it is not JSON of the right shape, if
it is empty, if more than a tenth of it cannot be printed, or if half of it or more is one piece of
at most 16 characters, 8 times in a row or more (`!!!!!!!!`: the known sign of weights that were
lost). An embedding is unfit if it is empty, nothing but zeros, or not finite.

**After waking** a model must report the same model name, and answer as before. If its two answers
before the sleep were equal, "as before" means equal (apart from white space). If they were not, its
distance to the nearer of the two may be twice their distance from each other. The distance of texts
is the share of words that they do not have in common, in the same order. The distance of embeddings
is 1 minus their cosine; 0.001 is always allowed. If the two have half of their words in common or
less, any answer would be allowed: then only unfit answers can be detected, and the verdict is a
warning.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from operator import mul
from typing import Any, Literal

import msgspec

MAX_TOKENS = 40
"""Enough to tell two models apart, and fast enough on a CPU."""

SHOWN_CHARACTERS = 60

LOOKED_AT_CHARACTERS = 4000
"""The rest of an answer is ignored: a server that ignores `max_tokens` may send much more."""

LEAST_PRINTABLE = 0.9
MOST_REPEATED = 0.5
ALLOWED_TIMES = 2.0
VECTOR_SLACK = 0.001

_REPEATED = re.compile(r"(\S{1,16}?)(?:\s*\1){7,}")


class Unfit(Exception):
    """An unacceptable answer; the message says why."""


# ---- Questions ----


@dataclass(frozen=True)
class Question:
    """A request that is repeated unchanged.

    Attributes:
        path: Path of the endpoint; its last segment decides the form of the body.
        model: Model name for the backend.
        prompt: Text of the prompt.
    """

    path: str
    model: str
    prompt: str

    @property
    def body(self) -> bytes:
        """Body of the request: JSON that makes the server as deterministic as it can be."""
        asked: dict[str, Any]
        prompt = self.prompt.encode(errors="replace").decode()  # a shell may give any bytes
        if self.path.endswith("/embeddings"):
            asked = {"input": prompt}
        else:
            asked = {"max_tokens": MAX_TOKENS, "temperature": 0, "seed": 0, "stream": False}
            if self.path.endswith("/chat/completions"):
                asked["messages"] = [{"role": "user", "content": prompt}]
            else:
                asked["prompt"] = prompt
        return msgspec.json.encode({"model": self.model, **asked})

    def read(self, status: int, body: bytes) -> Answer:
        """Decode an answer; raises Unfit."""
        if status != 200:
            raise Unfit(f"status {status}: {shown(body.decode(errors='replace'))}")
        try:
            return _read_embedding(body) if self.path.endswith("/embeddings") else _read_text(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            start = shown(body.decode(errors="replace"))
            raise Unfit(f"no such answer as was asked for ({error}): {start}") from None


def is_known(path: str) -> bool:
    """Return whether llmux knows what to ask at a path."""
    return re.fullmatch(r"/[!-~]*(?<=/)(completions|embeddings)", path) is not None


# ---- Answers ----


@dataclass(frozen=True)
class Answer:
    """An answer, a text or an embedding.

    Attributes:
        model: Model name in the answer.
        words: Words of a text.
        numbers: Numbers of an embedding.
    """

    model: str
    words: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.numbers:
            return shown(" ".join(self.words))
        few = ", ".join(f"{number:.3g}" for number in self.numbers[:3])
        return f"{len(self.numbers)} numbers: {few}, ..."

    def distance(self, other: Answer) -> float:
        """Return the distance: 0 for the same answer, 1 for one with nothing in common."""
        if not (self.numbers and other.numbers):
            return 1 - SequenceMatcher(None, self.words, other.words, autojunk=False).ratio()
        if len(self.numbers) != len(other.numbers):
            return 1.0
        cosine = math.fsum(map(mul, _unit(self.numbers), _unit(other.numbers)))
        return min(1.0, max(0.0, 1 - cosine))


def _unit(numbers: tuple[float, ...]) -> list[float]:
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    model: str | None = None


def _read_text(body: bytes) -> Answer:
    completion = msgspec.json.decode(body, type=_Completion)
    pieces: list[str | None] = []
    for choice in completion.choices:
        message = choice.message or _Message()
        # A model that thinks first may get no further within MAX_TOKENS.
        pieces += message.reasoning_content, message.reasoning, message.content, choice.text
    text = "\n".join(filter(None, pieces))[:LOOKED_AT_CHARACTERS]
    _check_text(text)
    return Answer(completion.model or "", words=tuple(text.split()))


def _check_text(text: str) -> None:
    squeezed = "".join(text.split())
    if not squeezed:
        raise Unfit("an empty answer")
    printable = sum(letter.isprintable() and letter != "\ufffd" for letter in squeezed)
    if printable < LEAST_PRINTABLE * len(squeezed):
        raise Unfit(f"garbage, much of which cannot be printed: {shown(text)}")
    runs = ("".join(run.group().split()) for run in _REPEATED.finditer(text))
    if sum(map(len, runs)) >= MOST_REPEATED * len(squeezed):
        raise Unfit(f"garbage, the same over and over: {shown(text)}")


def _read_embedding(body: bytes) -> Answer:
    embeddings = msgspec.json.decode(body, type=_Embeddings)
    numbers = tuple(embeddings.data[0].embedding) if embeddings.data else ()
    if not numbers:
        raise Unfit("an empty embedding")
    length = math.hypot(*numbers)
    if not length or not math.isfinite(length):
        raise Unfit(f"an embedding of length {length}")
    return Answer(embeddings.model or "", numbers=numbers)


def shown(text: str) -> str:
    """Quote the start of a text on one line, without control characters for a terminal."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return repr(cut)


# ---- Verdicts ----

Verdict = Literal["PASS", "WARN"]


def compare(first: Answer, second: Answer, after: Answer) -> tuple[Verdict, str]:
    """Compare an answer after sleep with two from before; see the module for the rule.

    Returns:
        The verdict and its explanation.

    Raises:
        Unfit: The model is no longer the same.
    """
    if after.model != first.model:
        raise Unfit(f"answers as {after.model!r}, and did as {first.model!r}")
    apart = first.distance(second)
    far = min(after.distance(first), after.distance(second))
    slack = VECTOR_SLACK if first.numbers else 0.0
    allowed = max(slack, ALLOWED_TIMES * apart)
    if far > allowed:
        distance = "" if not allowed else f" ({far:.3f} away, {allowed:.3f} allowed)"
        raise Unfit(f"not as before{distance}: {after}, was {first}")
    if allowed >= 1:
        return "WARN", f"no garbage; no more can be told, as its answers differ: {after}, {first}"
    return "PASS", "the same" if not far else f"alike: {far:.3f} away, {allowed:.3f} allowed"
