"""What llmux and a backend could read in two ways: names in bodies, targets, lengths of no body."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from llmux.errors import BadRequest
from llmux.http.targets import check_request_line, origin_form
from llmux.openai.fields import read_fields
from llmux.openai.naming import Meanings
from llmux.openai.rewriting import rewrite_body, rewrite_target
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.lanes import LANES, Site, play, read_all, running_lane

FORM = b"Content-Type: application/x-www-form-urlencoded"
MULTIPART = b"Content-Type: multipart/form-data; boundary=b"
OLLAMA = "http://127.0.0.1:11434"
MEANINGS = Meanings([
    ("a", ("gpt-4o",), OLLAMA, None),
    ("b", ("second", "B:Latest"), OLLAMA, "org/b"),
    ("c", (), "http://127.0.0.1:1", "org/c"),
])  # fmt: skip


def part(value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + value + b"\r\n--b--"


def agreed(body: bytes, kind: bytes = b"", upstream: str | None = None, model: str = "a") -> bytes:
    headers = [(b"Content-Type", kind.partition(b": ")[2])]
    return rewrite_body(body, read_fields(headers, body), MEANINGS, model, upstream)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"model":"b"}', b'{"model":"a"}'),
        (b'{"model":"b","x":NaN}', b'{"model":"a","x":NaN}'),  # Python
        (b'{"model":"b","x":"\xff"}', b'{"model":"a","x":"\xff"}'),  # Go, Node
        (b'{"model":"b","x":"\\ud800"}', b'{"model":"a","x":"\\ud800"}'),
        (b'{"model":"second", "x":1}', b'{"model":"a", "x":1}'),
        (b'{"Model":"b"}', b'{"Model":"a"}'),
        (b'{"MODEL" : "\\u0062"}', b'{"MODEL" : "a"}'),
        (b'{"\\u004dodel":"b","x":2}', b'{"\\u004dodel":"a","x":2}'),
        (b'{"m\\u006Fdel":"b"}', b'{"m\\u006Fdel":"a"}'),
        (b'{"x":{"model":"b"},"model":"b"}', b'{"x":{"model":"b"},"model":"a"}'),
        (b'{"model":"b","model":"b","mODEL":"b"}', b'{"model":"a","model":"a","mODEL":"a"}'),
        # What Ollama takes for the same name.
        (b'{"model":"B"}', b'{"model":"a"}'),
        (b'{"model":"b:latest"}', b'{"model":"a"}'),
        (b'{"model":"org/B"}', b'{"model":"a"}'),
    ],
)
def test_another_models_name_is_replaced(body: bytes, after: bytes) -> None:
    assert agreed(body) == after
    large = b'{"y":"' + b"y" * 300_000 + b'",'
    assert agreed(large + body[1:]) == large + after[1:]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b'{ "model" :"a"}', b'{"model":"gpt-4o"}', b'{"model":"A:latest"}',
        b'{"model":"its/own/name"}', b'{"Model":"own"}', b'{"model":null}', b'{"Model":["b"]}',
        b'{"x":{"model":"b"}}', b'["b"]', b'{"x":"\\"model\\":\\"b\\""}', b'{"models":"b"}',
        b'{"model":"org/c"}',  # that is what another server calls another model
    ],
)  # fmt: skip
def test_what_does_not_disagree_is_left_byte_for_byte(body: bytes) -> None:
    assert agreed(body) is body


def test_with_upstream_model_all_spellings_are_rewritten() -> None:
    body = b'{"model":"a","Model":"a","mod\\u0045l":"a"}'
    assert agreed(body, upstream="x/y") == b'{"model":"x/y","Model":"x/y","mod\\u0045l":"x/y"}'
    assert agreed(b'{"Model":"b"}', upstream="x") == b'{"Model":"x"}'


def test_a_body_can_be_made_to_agree_again() -> None:
    """A request that was refused is sent once more, by then perhaps under another name."""
    body = b'{"y":1,"model":"b","Model":"b","z":"model"}'
    fields = read_fields([], body)
    for name in ("long/" * 20, "x", "longer"):
        body = rewrite_body(body, fields, MEANINGS, "a", name)
        assert json.loads(body) == {"y": 1, "model": name, "Model": name, "z": "model"}


@pytest.mark.parametrize(
    ("body", "kind", "after"),
    [
        (b"x=1&model=b&y=2", FORM, b"x=1&model=a&y=2"),
        (b"%6dodel=%62", FORM, b"%6dodel=a"),
        (b"Model=b", FORM, b"Model=b"),
        (b"model=b", b"", b"model=b"),
        (part(b"b"), MULTIPART, part(b"a")),
        (part(b"other"), MULTIPART, part(b"other")),
    ],
)
def test_forms_agree_too(body: bytes, kind: bytes, after: bytes) -> None:
    assert agreed(body, kind) == after


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"model":"b"} {}', b""),  # Go decodes the first of them
        (b'{"model":"b","x":"\t"}', b""),
        (b'{"x":{"Model":"b"}', b""),
        (b'{"x":"&model=b&"}', FORM),  # as a form, it names one
    ],
)
def test_what_only_another_parser_would_read_is_refused(body: bytes, kind: bytes) -> None:
    with pytest.raises(BadRequest):
        agreed(body, kind)


@pytest.mark.parametrize(
    "disposition",
    [
        b'Content-Disposition: form-data;\r\n name="model"',
        b'Content-Disposition:\r\n\tform-data; name="model"',
        b"X: " + b"x" * 600 + b'\r\nContent-Disposition: form-data; name="model"',
    ],
)
def test_a_part_is_found_however_its_head_is_written(disposition: bytes) -> None:
    form = b"--b\r\n%b\r\n\r\n%b\r\n--b--"
    assert agreed(form % (disposition, b"b"), MULTIPART) == form % (disposition, b"a")


@pytest.mark.parametrize(
    "body",
    [
        part(b"b").replace(b"\r\n", b"\n"),
        b"preamble\n" + part(b"b").replace(b"\r\n", b"\n"),
        part(b"b").replace(b"--b\r\n", b"--b \n"),
        part(b"b").replace(b'name="model"', b"name*=utf-8''model"),
        part(b"b").replace(b'name="model"', b"name*0=mod; name*1=el"),
        part(b"b").replace(b"--b\r\n", b"--b\r\nX: " + b"x" * 20_000 + b"\r\n"),
    ],
)
def test_forms_that_only_some_parsers_read_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        agreed(body, MULTIPART)


def test_two_content_types_are_refused() -> None:
    headers = [(b"Content-Type", b"text/plain"), (b"content-type", FORM.partition(b": ")[2])]
    with pytest.raises(BadRequest):
        read_fields(headers, b"model=b")


def test_a_query_agrees_too() -> None:
    """llama.cpp's router wakes what `?model=` names."""
    for target, after in [
        (b"/props?x=1&model=b&y", b"/props?x=1&model=a&y"),
        (b"/props?model=a&model=%62", b"/props?model=a&model=a"),
        (b"/props?model=its/own", b"/props?model=its/own"),
        (b"/props", b"/props"),
    ]:
        assert rewrite_target(target, MEANINGS, "a", None) == after
    assert rewrite_target(b"/p?model=b", MEANINGS, "a", "x y") == b"/p?model=x%20y"


def forwarded(site: Site) -> list[bytes]:
    return [body_of(request) for request in site.backend.received]


@pytest.fixture(params=LANES)
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """Two models at one backend, which could wake the other itself."""
    async with running_lane(request.param, tmp_path, models=("a", "b"), http2=True) as site:
        yield site


async def test_a_backend_is_not_told_of_another_model(two: Site) -> None:
    body = b'{"model": "b", "x": 1}'
    for request in (
        post(body, b"model-override: a"),
        post(body).replace(b"/v1/", b"/upstream/a/v1/", 1),
        post(b'{"Model": "b", "x": 1}').replace(b"/completions", b"/completions?model=a", 1),
        post(b"model=b", FORM, b"model-override: a"),
        post(part(b"b"), MULTIPART, b"model-override: a"),
    ):
        answer = await two.exchange(request)
        assert (status(answer), b"x-llmux-model: a" in answer.lower()) == (200, True)
    assert forwarded(two) == [
        b'{"model": "a", "x": 1}', b'{"model": "a", "x": 1}', b'{"Model": "a", "x": 1}',
        b"model=a", part(b"a"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","Model":"b"}', b'{"model":"a","\\u004dODEL":"b"}', b'{"MODEL":"b","Model":"a"}',
        b'{"model":"a","model":"b"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("override", [(), (b"model-override: a",)])
async def test_two_names_in_one_body_are_refused(
    two: Site, body: bytes, override: tuple[bytes, ...]
) -> None:
    answer = await two.exchange(post(body, *override))
    assert (status(answer), error_code(answer)) == (400, "bad_request")
    assert two.backend.received == []


async def test_a_body_names_by_its_own_spelling_only(two: Site) -> None:
    assert error_code(await two.exchange(post(b'{"Model": "a"}'))) == "no_model"
    same = b'{"model": "a", "Model": "a"}'
    assert status(await two.exchange(post(same))) == 200
    assert forwarded(two) == [same]


# ---- Targets ----

BAD_TARGETS = [
    b"v1/p", b"80", b"foo:bar", b"ftp://h/x", b"http:///x", b"http:x", b"//h:80:x/../y", b"*x",
    b"/../x", b"/a/../b", b"/a/./b", b"/a/..", b"/.", b"/%2e%2e/x", b"/a/.%2E/b", b"/a/%2E",
    b"/a/..%2fb", b"/a%2F..%2Fb", b"/a\\..\\b", b"/a\\b", b"/a%5c..%5cb", b"/..;x/b", b"/a/..%3Bx",
    b"/upstream/a/../x", b"/upstream/a/%2e%2e/x", b"http://h/../x", b"/a#b", b"/a?b#c",
]  # fmt: skip
GOOD_TARGETS = [
    b"/", b"//x//y", b"/a/...", b"/a/.b/c.", b"/a/..b", b"/a%2eb", b"/a%2fb", b"/a;b", b"/~a:b@c",
    b"/x?y=/../z", b"/x?a\\b", b"/%41", b"http://h", b"HTTP://h:80/x?y", b"https://[::1]:8/x",
]  # fmt: skip


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_target_that_could_be_another_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest):
        check_request_line(b"GET", origin_form(target))


@pytest.mark.parametrize("target", GOOD_TARGETS)
def test_any_other_target_passes(target: bytes) -> None:
    check_request_line(b"GET", origin_form(target))


@pytest.mark.parametrize("method", [b"", b"GE T", b"G\xc3\x89T", b"GET:", b"G\nT"])
def test_a_method_is_a_token(method: bytes) -> None:
    with pytest.raises(BadRequest):
        check_request_line(method, b"/")


@pytest.mark.parametrize("target", [b"v1/p", b"80", b"-secret/x", b"/../x", b"/a/%2e%2e/x"])
async def test_no_target_leaves_the_prefix(two: Site, target: bytes) -> None:
    config = two.service.reloader.config.models["a"]
    moved = {"url": f"http://127.0.0.1:{two.backend.port}/team-a", "port": None}
    two.service.proxy.use("a", type(config)(**{**fields_of(config), **moved}))
    named = b"%b HTTP/1.1\r\nHost: h\r\nmodel-override: a\r\nConnection: close\r\n\r\n"
    assert status(await two.exchange(b"POST " + named % target)) == 400
    assert two.backend.received == []
    rest = target.lstrip(b"/")
    line = b"POST /upstream/a/%b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % rest
    is_plain = not target.startswith(b"/")
    assert status(await two.exchange(line)) == (200 if is_plain else 400)
    heads = [received.partition(b" HTTP")[0] for received in two.backend.received]
    assert heads == [b"POST /team-a/" + rest] * is_plain


def fields_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


async def test_an_asterisk_is_for_options_and_never_behind_a_prefix(two: Site) -> None:
    request = b"%b * HTTP/1.1\r\nHost: h\r\nmodel-override: a\r\nConnection: close\r\n\r\n"
    assert status(await two.exchange(request % b"GET")) == 400
    assert two.backend.received == []
    assert status(await two.exchange(request % b"OPTIONS")) == 200
    assert two.backend.received[0].startswith(b"OPTIONS * HTTP/1.1\r\n")


async def test_a_broken_address_behind_a_good_request_gets_its_answer(two: Site) -> None:
    bad = b"GET http://[::1/x HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = await two.exchange(post(close=False) + bad)
    assert [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]] == [200, 400]


class Http2:
    """One HTTP/2 connection, whose headers nobody checks on this side."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.frames = h2.connection.H2Connection(config)
        self.frames.initiate_connection()

    async def ask(self, path: bytes, method: bytes = b"GET") -> int:
        """The status of an answer; 0 if there is none."""
        number = self.frames.get_next_available_stream_id()
        headers = [
            (b":method", method), (b":path", path), (b":scheme", b"http"), (b":authority", b"h"),
            (b"model-override", b"a"),
        ]  # fmt: skip
        self.frames.send_headers(number, headers, end_stream=True)
        await self.stream.send_all(self.frames.data_to_send())
        code = 0
        while data := await self.stream.receive_some():
            for event in self.frames.receive_data(bytes(data)):
                if isinstance(event, h2.events.ResponseReceived):
                    code = int(dict(event.headers)[b":status"])
                if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    return code
        return code


@pytest.mark.parametrize(
    "path", [b"/a b", b"/a\tb", b"/a\x7f", b"/../a", b"a", b"/a#b", b"/\xc3\xa9"]
)
async def test_http_2_targets_that_are_none_get_400(two: Site, path: bytes) -> None:
    async with await two.connect() as stream:
        client = Http2(stream)
        with trio.fail_after(20):
            assert await client.ask(path) == 400
            assert await client.ask(b"/good") == 200  # on the same connection
    assert len(two.backend.received) == 1


async def test_http_2_methods_that_are_none_get_400(two: Site) -> None:
    async with await two.connect() as stream:
        client = Http2(stream)
        with trio.fail_after(20):
            assert await client.ask(b"/x", b"GE T") == 400
            assert await client.ask(b"/x") == 200


# ---- Answers ----


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("head", "method", "has_length"),
    [
        (b"204 No Content\r\nContent-Length: 0", b"GET", False),
        (b"204 No Content\r\nContent-Length: 5", b"GET", False),
        (b"304 Not Modified\r\nContent-Length: 5", b"GET", True),
        (b"200 OK\r\nContent-Length: 5", b"HEAD", True),
    ],
)
async def test_the_length_of_no_body(
    lane: str, head: bytes, method: bytes, has_length: bool, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(b"HTTP/1.1 " + head + b"\r\n\r\n")
        get = method + b" /x?model=a HTTP/1.1\r\nHost: h\r\n%b\r\n"
        async with await site.connect() as stream:
            await stream.send_all(get % b"" + get % b"Connection: close\r\n")
            with trio.fail_after(20):
                answers = (await read_all(stream)).lower()
    assert answers.count(b"http/1.1 " + head[:3]) == 2  # the second is found behind the first
    assert answers.count(b"content-length: 5") == 2 * has_length
    assert answers.count(b"content-length") == 2 * has_length
    assert b"transfer-encoding" not in answers
