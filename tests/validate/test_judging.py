"""How answers before and after a sleep are judged."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llmux.validate.verdicts import MAX_TOKENS, Answer, Question, Unfit, compare, is_known

CHAT = Question("/v1/chat/completions", "llama", "Who are you?")
COMPLETION = Question("/v1/completions", "llama", "I am")
EMBEDDING = Question("/v1/embeddings", "bge", "the sea")

SEA = "The sea is a wide and restless mirror of the sky above it."
LAKE = "The sea is a wide and quiet mirror of the clouds above it."
OTHER = "Waves crash endlessly against ancient cliffs, whispering old secrets."


def chat(text: str | None, **message: Any) -> bytes:
    said = {"content": text, "role": "assistant", **message}
    return json.dumps({"model": "llama", "choices": [{"message": said}]}).encode()


def embedding(*numbers: float) -> bytes:
    return json.dumps({"model": "bge", "data": [{"embedding": numbers}]}).encode()


def said(text: str, model: str = "llama") -> Answer:
    return Answer(model, words=tuple(text.split()))


def vector(*numbers: float) -> Answer:
    return Answer("bge", numbers=numbers)


# ---- What is asked ----


def test_what_is_asked_leaves_no_choice() -> None:
    greedy = {"max_tokens": MAX_TOKENS, "temperature": 0, "seed": 0, "stream": False}
    assert json.loads(CHAT.body) == {
        "model": "llama",
        "messages": [{"role": "user", "content": "Who are you?"}],
        **greedy,
    }
    assert json.loads(COMPLETION.body) == {"model": "llama", "prompt": "I am", **greedy}
    assert json.loads(EMBEDDING.body) == {"model": "bge", "input": "the sea"}
    assert json.loads(Question("/v1/embeddings", "bge", "\udce9").body)["input"] == "?"


def test_which_paths_are_known() -> None:
    assert all(is_known(question.path) for question in (CHAT, COMPLETION, EMBEDDING))
    assert is_known("/api/openai/v1/chat/completions")
    for path in (
        "/v1/rerank",
        "v1/embeddings",
        "/v1/x y/embeddings",
        "/v1/embeddings\n",
        "/x-completions",
    ):
        assert not is_known(path)


# ---- An answer by itself ----


def test_what_is_read() -> None:
    assert CHAT.read(200, chat(" I am\n llama. ")) == said("I am llama.")
    assert CHAT.read(200, chat(None, reasoning_content="Let me think")) == said("Let me think")
    assert CHAT.read(200, chat("I am", reasoning="Hm")) == said("Hm I am")
    text = b'{"model": null, "choices": [{"text": "llama"}]}'
    assert COMPLETION.read(200, text) == said("llama", model="")
    assert EMBEDDING.read(200, embedding(1, 0.5)) == vector(1, 0.5)
    assert CHAT.read(200, chat("海は広い空の鏡です。")) == said("海は広い空の鏡です。")
    assert CHAT.read(200, chat("| a | b |\n|--------|\n| one | two | three |")).words[0] == "|"


@pytest.mark.parametrize(
    ("question", "status", "body", "why"),
    [
        (CHAT, 500, b'{"error": "EngineDead"}', """status 500: '{"error": "EngineDead"}'"""),
        (CHAT, 200, b"<html>\x1b[2J", r"'<html>\x1b[2J'"),
        (CHAT, 200, b"", "no such answer"),
        (CHAT, 200, b'{"model": "x"}', "missing required field `choices`"),
        (CHAT, 200, b'{"choices": [{"message": {"content": "\xff"}}]}', "no such answer"),
        (CHAT, 200, b"[" * 100_000, "no such answer"),
        (CHAT, 200, b'{"choices": []}', "an empty answer"),
        (CHAT, 200, chat(" \n"), "an empty answer"),
        (CHAT, 200, chat(None), "an empty answer"),
        (CHAT, 200, chat("!!!!!!!!"), "the same over and over: '!!!!!!!!'"),
        (CHAT, 200, chat("the the the the the the the the the th"), "the same over and over"),
        (CHAT, 200, chat("Paris" + " is is" * 20), "the same over and over"),
        (CHAT, 200, chat("\x00\x01\x02 abc \ufffd"), "cannot be printed"),
        (CHAT, 200, chat("\ufffd" * 4), "cannot be printed"),
        (EMBEDDING, 200, embedding(), "an empty embedding"),
        (EMBEDDING, 200, b'{"data": []}', "an empty embedding"),
        (EMBEDDING, 200, embedding(0, 0), "an embedding of length 0"),
        (EMBEDDING, 200, embedding(math.nan), "no such answer"),
        (EMBEDDING, 200, b'{"data": [{"embedding": [1e308, 1e308, 1e308, 1e308]}]}', "length inf"),
        (EMBEDDING, 200, b'{"data": [{"embedding": null}]}', "no such answer"),
    ],
)  # fmt: skip
def test_answers_that_are_unfit(question: Question, status: int, body: bytes, why: str) -> None:
    with pytest.raises(Unfit) as caught:
        question.read(status, body)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_long_answer_is_read_in_no_time() -> None:
    assert len(CHAT.read(200, chat("ab" * 7 + "c" + SEA * 100_000)).words) < 1000


# ---- Before and after ----


def test_equal_answers_must_stay_equal() -> None:
    assert compare(said(SEA), said(SEA), said(SEA)) == ("PASS", "the same")
    for after in (LAKE, OTHER, SEA[:-4]):
        with pytest.raises(Unfit, match=r"not as before: .*, was 'The sea"):
            compare(said(SEA), said(SEA), said(after))


def test_answers_that_differ_may_differ_twice_as_much() -> None:
    apart = said(SEA).distance(said(LAKE))
    assert 0.1 < apart < 0.25  # two words of thirteen
    near = said(SEA.replace("wide", "grey"))
    verdict, detail = compare(said(SEA), said(LAKE), near)
    assert verdict == "PASS"
    assert detail.startswith("alike: 0.")
    farther = said(SEA.replace("wide", "grey").replace("sky above", "moon below"))
    assert apart < farther.distance(said(SEA)) < farther.distance(said(LAKE))
    assert compare(said(SEA), said(LAKE), farther)[0] == "PASS"
    with pytest.raises(Unfit, match=r"not as before \(1\.000 away, 0\.\d+ allowed\)"):
        compare(said(SEA), said(LAKE), said(OTHER))


def test_where_nothing_can_be_told_that_is_said() -> None:
    verdict, detail = compare(said(SEA), said(OTHER), said("Something else altogether"))
    assert verdict == "WARN"
    assert "no more can be told" in detail


def test_another_models_name_is_noticed() -> None:
    with pytest.raises(Unfit, match="answers as 'mistral', and did as 'llama'"):
        compare(said(SEA), said(SEA), said(SEA, model="mistral"))


def test_embeddings_are_compared_by_their_direction() -> None:
    first = vector(1, 2, 3)
    assert compare(first, first, vector(1.001, 2.001, 2.999))[0] == "PASS"
    for after in (vector(3, 2, 1), vector(-1, -2, -3), vector(1, 2), vector(1, 2, 3, 0)):
        with pytest.raises(Unfit, match="not as before"):
            compare(first, first, after)
