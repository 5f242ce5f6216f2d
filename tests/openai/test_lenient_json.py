"""JSON as Python's `json` and JavaScript's `JSON.parse` take it; what both refuse is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.errors import BadRequest, LlmuxError, NotJson
from llmux.openai import jsonbody, jsoncheck
from llmux.openai.codings import Bounds
from llmux.openai.fields import is_json_type, read_coded, read_fields
from llmux.openai.jsoncheck import check_json
from llmux.openai.naming import find_model
from llmux.openai.rewriting import decoded_text, rewrite_body
from llmux.openai.scanning import Pause, no_pause
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.http.test_two_readers import MEANINGS
from tests.lanes import LANES, running_lane

JSON = b"Content-Type: application/json"
BOM = b"\xef\xbb\xbf"

# Each is taken by Python, by JavaScript, or by both; all of them name the model a.
TAKEN = {
    "a byte order mark": BOM + b'{"model":"a"}',
    "a mark and space": BOM + b' \r\n\t{"model":"a"}\n',
    "NaN": b'{"model":"a","temperature":NaN}',
    "infinities": b'{"x":[Infinity,-Infinity,{"y":NaN}],"model":"a"}',
    "a lone surrogate": b'{"model":"a","x":"\\ud83d and \\udc00\\ud800"}',
    "a lone surrogate in a key": b'{"\\ud800":1,"model":"a"}',
    "a surrogate in UTF-8": b'{"model":"a","x":"\xed\xa0\x80"}',
    "no UTF-8": b'{"x":"caf\xe9","model":"a"}',
    "a number of 5,000 digits": b'{"model":"a","x":%b}' % (b"9" * 5000),
    "a number out of range": b'{"model":"a","x":1e999999,"y":-0.0E-9999}',
    "keys twice": b'{"x":1,"x":2,"model":"a","model":"a"}',
    "space behind it": b'{"model":"a"}' + b" \t\r\n" * 100,
    "DEL": b'{"model":"a","x":"\x7f"}',
    "deep": b'{"model":"a","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"x":' + b'{"model":' * 5000 + b"1" + b"}" * 5000 + b',"model":"a"}',
    "UTF-16": '{"model":"a"}'.encode("utf-16"),
    "UTF-16-LE": '{"model":"a"}'.encode("utf-16-le"),
    "UTF-16-BE": ' {"x":"é😀","model":"a"}'.encode("utf-16-be"),
    "UTF-16 with a surrogate": '{"x":"\ud800","model":"a"}'.encode("utf-16-le", "surrogatepass"),
    "UTF-32": '{"model":"a"}'.encode("utf-32"),
    "UTF-32-BE": '\n{"model":"a","x":NaN}'.encode("utf-32-be"),
}

# What neither takes, and the byte at which it goes wrong.
REFUSED: dict[bytes, int] = {
    b'{"model":"a"': 12,
    b'{"model":"a",}': 13,
    b'{"model":"a"}}': 13,
    b'{"model":"a"} {}': 14,
    b'{"model":"a"}\x00': 13,
    b'{"model":"a"}\x0b': 13,
    BOM + BOM + b'{"model":"a"}': 3,
    b"{'model':'a'}": 1,
    b'{model:"a"}': 1,
    b'{"model" "a"}': 9,
    b'{"model":"a" "x":1}': 13,
    b'{"model":"a","x":[1 2]}': 20,
    b'{"model":"a","x":[1,]}': 20,
    b'{"model":"a","x":[,1]}': 18,
    b'{"model":"a","x":[1}}': 19,
    b'{"model":"a","x":}': 17,
    b'{"model":"a","x":"\t"}': 18,
    b'{"model":"a","x":"\n"}': 18,
    b'{"model":"a","x":"\\x"}': 18,
    b'{"model":"a","x":"\\u12g4"}': 18,
    b'{"model":"a","x":"\\': 18,
    b'{"model":"a","x":"y}': 17,
    b'{"model":"a","x":01}': 18,
    b'{"model":"a","x":1.}': 18,
    b'{"model":"a","x":.5}': 17,
    b'{"model":"a","x":+1}': 17,
    b'{"model":"a","x":-}': 17,
    b'{"model":"a","x":1e}': 18,
    b'{"model":"a","x":0x1}': 18,
    b'{"model":"a","x":nan}': 17,
    b'{"model":"a","x":-NaN}': 17,
    b'{"model":"a","x":True}': 17,
    b'{"model":"a","x":undefined}': 17,
    b'{"model":"a"/* */}': 12,
    b'// \n{"model":"a"}': 0,
    b'{"model":\xc2\xa0"a"}': 9,
    b'{"model":"a","x":' + b"[" * 5000: 5017,
    b'{"model":"a","x":' + b"[" * 5000 + b"]" * 5001 + b"}": 10_017,
}


def is_taken_by_python(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def fields_of(body: bytes, *headers: tuple[bytes, bytes]) -> str:
    return find_model(b"/x", headers, read_fields(headers, body), {"a"}).name


@pytest.mark.parametrize("what", TAKEN)
def test_what_one_of_them_takes_is_read(what: str) -> None:
    body = TAKEN[what]
    assert fields_of(body) == "a"
    assert fields_of(body, (b"Content-Type", b"application/json; charset=utf-8")) == "a"
    assert fields_of(body, (b"Content-Type", b"text/plain")) == "a"


@pytest.mark.parametrize("body", REFUSED)
@pytest.mark.parametrize("size", [0, jsonbody.LARGE_BYTES])
def test_what_both_refuse_is_refused_with_the_place(body: bytes, size: int) -> None:
    assert not is_taken_by_python(body)
    at = REFUSED[body]
    if size and body.startswith(b"{"):  # the same, behind a long string
        pad = b'"pad":"' + b"x" * size + b'",'
        body, at = b"{" + pad + body[1:], at + len(pad)
    with pytest.raises(NotJson, match=rf"^body is not JSON: .*\(byte {at}\)$"):
        fields_of(body, (b"Content-Type", b"application/json"))
    if body.startswith(b"{"):
        with pytest.raises(BadRequest, match=rf"^body is not JSON: .*\(byte {at}\)$"):
            fields_of(body)


def test_the_place_counts_lines_and_characters() -> None:
    with pytest.raises(NotJson, match=r"line 2 column 6 \(byte 20\)"):
        check_json('{"model":"a",\n"é": é}'.encode(), 0, no_pause)


@pytest.mark.parametrize("slice_bytes", [8, 9, 13, 64])
@pytest.mark.parametrize("body", [*TAKEN.values(), *REFUSED])
def test_slices_change_nothing(
    monkeypatch: pytest.MonkeyPatch, slice_bytes: int, body: bytes
) -> None:
    if len(body) > 20_000 or b"\0" in body[:4]:
        return
    whole = outcome(body)
    monkeypatch.setattr(jsoncheck, "SLICE_BYTES", slice_bytes)
    assert outcome(body) == whole


def outcome(body: bytes) -> str:
    try:
        check_json(body, len(BOM) * body.startswith(BOM), no_pause)
    except NotJson as error:
        return error.message
    return ""


PIECES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"a"', b'"', b"1", b"0", b"-", b".", b"e", b"+", b" ",
    b"\n", b"true", b"null", b"NaN", b"Infinity", b"-Infinity", b"\\u12", b"\\n", b"\\", b"a",
    b"1.5e3", b'"model":"x"', b'{"a":1}', b"[1,2]", b"[[[[1]]],2]", b"\x0b", b"\x01", b"01", b"[]",
    b'"\\ud800"', b"/*",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_ascii_is_checked_as_python_does(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    assert (outcome(body) == "") is is_taken_by_python(body)


def test_what_would_take_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsoncheck, "MAX_STEPS", 100)
    with pytest.raises(BadRequest, match="more than 100 arrays or objects"):
        fields_of(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"a"}')
    assert fields_of(b'{"x":[' + b"[[[NaN]]]," * 1000 + b'1],"model":"a"}') == "a"


def test_a_heavy_body_that_names_no_model_is_looked_through_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jsonbody, "LARGE_BYTES", 0)
    monkeypatch.setattr(jsonbody, "MAX_PARSED_WEIGHT", 1)
    assert read_fields([], b'{"x":[1,2,NaN]}').mistake == ""
    assert read_fields([], b'{"x":]]],"model":"a"}').mistake


def test_nested_further_than_a_name_is_no_name() -> None:
    with pytest.raises(LlmuxError, match="No model"):
        fields_of(b'{"x":{"model":"a"},"y":NaN,"z":[{"model":"a"}]}')


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (b'{"model":"a","x":NaN,"stream":true}', True),
        (b'{"model":"a","x":NaN,"stream": false}', False),
        (b'{"stream":true,"x":NaN,"stream":1}', False),
        (b'{"x":{"stream":true},"y":NaN}', False),
        (BOM + b'{"str\\u0065am" : true}', True),
        ('{"stream":true}'.encode("utf-16"), True),
    ],
)
def test_it_is_seen_whether_a_stream_is_wanted(body: bytes, asks: bool) -> None:
    assert read_fields([], body).asks_for_stream is asks


@pytest.mark.parametrize(
    ("kind", "is_json"),
    [
        (b"application/json", True), (b"Application/JSON ; charset=x", True), (b"text/json", True),
        (b"application/vnd.api+json", True), (b"application/problem+JSON", True),
        (b"application/x-ndjson", False), (b"application/jsonl", False), (b"", False),
    ],
)  # fmt: skip
def test_which_content_types_say_json(kind: bytes, is_json: bool) -> None:
    assert is_json_type(kind) is is_json


@pytest.mark.parametrize("body", [b"x", b"model=a", b" ", b"\0\0", b"\xff\xfe", b"\x1f\x8b"])
def test_what_is_said_to_be_json_must_be(body: bytes) -> None:
    with pytest.raises(NotJson, match=r"^body is not JSON: "):
        read_fields([(b"Content-Type", b"application/json")], body)
    assert read_fields([], body).name == ""


@pytest.mark.parametrize("body", [b"[1]", b'"a"', b"1", b"null", b"NaN", b""])
def test_json_that_is_no_object_names_no_model(body: bytes) -> None:
    fields = read_fields([(b"Content-Type", b"application/json")], body)
    assert (fields.name, fields.is_read, fields.mistake) == ("", True, "")


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-32-le"])
def test_a_name_in_utf_16_is_replaced_in_utf_8(codec: str) -> None:
    body = '{"x":"é😀","model":"b"}'.encode(codec)
    fields = read_coded([], body, (), Bounds(len(body)))
    plain = decoded_text(body, fields.codings, Bounds(len(body)))
    fields.codings = ()
    assert rewrite_body(plain, fields, MEANINGS, "a", None) == '{"x":"é😀","model":"a"}'.encode()


# ---- In the lanes ----


@pytest.mark.parametrize("lane", LANES)
async def test_what_one_of_them_takes_is_served_as_it_came(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        for body in TAKEN.values():
            assert status(await site.exchange(post(body, JSON))) == 200
        assert [body_of(each) for each in site.backend.received] == list(TAKEN.values())


@pytest.mark.parametrize("lane", LANES)
async def test_what_both_refuse_gets_400(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        for headers in ([JSON], [JSON, b"model-override: a"], []):
            answer = await site.exchange(post(b'{"model":"a",}', *headers))
            assert (status(answer), error_code(answer)) == (400, "bad_request")
            message = json.loads(body_of(answer))["error"]["message"]
            assert message.startswith("body is not JSON: ")
            assert message.endswith("line 1 column 14 (byte 13)")
        answer = await site.exchange(post(b"", JSON))
        assert (status(answer), error_code(answer)) == (404, "no_model")
        assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("size", [10, 400_000])
async def test_a_name_is_replaced_in_any_unicode(lane: str, size: int, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b")) as site:
        text = '{"x":"%s","model":"b"}' % ("é" * size)
        for body, after in [
            (BOM + text.encode(), BOM + text.replace("b", "a").encode()),
            (text.encode("utf-16"), text.replace("b", "a").encode()),
        ]:
            kind = b"Content-Type: application/json; charset=utf-16"
            answer = await site.exchange(post(body, kind, b"model-override: a"))
            assert status(answer) == 200
            head, _, sent = site.backend.received.pop().partition(b"\r\n\r\n")
            assert sent == after
            assert (b"charset" in head) is (body[:3] == BOM)


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_small_but_hard_to_check_is_checked_in_a_thread(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many brackets as a small body can have take a tenth of a second."""
    threads: set[int] = set()

    def watched(body: bytes, start: int, pause: Pause) -> None:
        check_json(body, start, pause)
        threads.add(threading.get_ident())

    monkeypatch.setattr(jsonbody, "check_json", watched)
    async with running_lane(lane, tmp_path) as site:
        for count, is_beside in [(10, False), (20_000, True)]:
            threads.clear()
            hard = b'{"x":[' + b"[[[[1]]]]," * count + b'NaN],"model":"a"}'
            assert status(await site.exchange(post(hard))) == 200
            assert (threads == {threading.get_ident()}) is not is_beside
