"""The fallback, perhaps somebody else's server, gets only requests that were read."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

from llmux.config import parse_config
from llmux.errors import ConfigError
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.http.test_two_readers import FORM, MULTIPART, part
from tests.lanes import LANES, ScriptedBackend, Site, running_lane
from tests.openai.test_codings import ENCODE

JSON = b"Content-Type: application/json"
SECRET = b'{"prompt":"secret","model":"a"'


UPLOAD = (
    part(b"batch").replace(b"model", b"purpose").removesuffix(b"--b--")
    + b'--b\r\nContent-Disposition: form-data; name="file"; filename="b.jsonl"\r\n\r\n'
    + b'{"custom_id":"1","body":%b\r\n--b--\r\n'
)

FAR: WeakKeyDictionary[Site, ScriptedBackend] = WeakKeyDictionary()
"""What each of them has for a fallback."""


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane("fast", tmp_path / "far") as far:
        fallback = f"http://127.0.0.1:{far.backend.port}"
        far_names = ["far"]
        async with running_lane(
            request.param, tmp_path, fallback=fallback, fallback_models=far_names
        ) as site:
            FAR[site] = far.backend
            yield site


def left(site: Site) -> list[bytes]:
    """The bodies that the fallback has got."""
    return [body_of(each) for each in FAR[site].received]


UNREAD = {
    "cut off": (SECRET, []),
    "cut off, a form": (SECRET, [FORM]),
    "cut off, JSON": (SECRET, [JSON]),
    "cut off, text": (SECRET, [b"Content-Type: text/plain"]),
    "a comma too much": (SECRET + b",}", []),
    "lines": ((SECRET + b"}\n") * 2, [b"Content-Type: application/x-ndjson"]),
    "a control character": (SECRET + b',"x":"\t"}', []),
    "a list that is none": (b"[" + SECRET + b"}", [JSON]),
    "UTF-16, cut off": (SECRET.decode().encode("utf-16"), []),
    "UTF-16, half a character": ((SECRET + b"}").decode().encode("utf-16")[:-1], []),
    "MessagePack": (b"\x81\xa5model\xa1a", [b"Content-Type: application/msgpack"]),
    "bytes": (b"\0\1\2model=a", [b"Content-Type: application/octet-stream"]),
    "text": (b"model: a", []),
    "a form that is said to be JSON": (b"model=a", [JSON]),
    "a form without a boundary": (part(b"a"), [b"Content-Type: multipart/form-data"]),
    "a form with another boundary": (part(b"a"), [MULTIPART + b"x"]),
    "a form without its end": (part(b"a")[:-4], [MULTIPART]),
    "two content types": (b"model=a", [FORM, b"Content-Type: text/plain"]),
    "compressed, cut off": (gzip.compress(SECRET + b"}")[:-1], [b"Content-Encoding: gzip"]),
    "compressed, broken": (gzip.compress(SECRET), [b"Content-Encoding: gzip"]),
    "compressed in another way": (gzip.compress(SECRET + b"}"), [b"Content-Encoding: br"]),
    "compressed in no known way": (gzip.compress(SECRET + b"}"), [b"Content-Encoding: xz"]),
    "compressed without a word of it": (gzip.compress(SECRET + b"}"), []),
    "compressed, no JSON": (gzip.compress(b"model: a"), [b"Content-Encoding: gzip"]),
    "two models": (b'{"model":"far","model":"a"}', []),
    "a key as Go reads it": (SECRET.replace(b"model", b"Model") + b"}", [JSON]),
    "a key in capitals": (b'{"MODEL":"a"}', []),
    "a batch": (b'{"requests":[{"params":%b}}]}' % SECRET, [JSON]),
    "a batch that is lenient": (b'{"x":NaN,"requests":[{"params":%b}}]}' % SECRET, [JSON]),
    "a list": (b"[%b}]" % SECRET, [JSON]),
    "a session": (b'{"session":{"type":"realtime","model":"a"}}', [JSON]),
    "a large batch": (b'[{"x":"%b"},%b}]' % (b"x" * 300_000, SECRET), [JSON]),
    "a compressed batch": (gzip.compress(b"[%b}]" % SECRET), [b"Content-Encoding: gzip"]),
    "a file of a batch": (UPLOAD % (SECRET + b"}}"), [MULTIPART]),
    "a file of many lines": (UPLOAD % (b"x\n" * 200_000 + SECRET + b"}}\n"), [MULTIPART]),
    "a file of a batch, as Go reads it": (UPLOAD % b'"MODEL": "a"', [MULTIPART]),
    "a compressed file of a batch": (
        gzip.compress(UPLOAD % SECRET), [MULTIPART, b"Content-Encoding: gzip"],
    ),
    "JSON in a form": (b"batch=" + SECRET, [FORM]),
    "a form with more names than are looked at": (UPLOAD % (b'"model":1,' * 100_001), [MULTIPART]),
    "a form in JSON": (b'{"model":"far","x":"&model=a&"}', [FORM]),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREAD)
async def test_what_cannot_be_read_goes_nowhere(site: Site, what: str) -> None:
    body, headers = UNREAD[what]
    answer = await site.exchange(post(body, *headers))
    expected = (415, "unsupported_encoding") if b"xz" in b"".join(headers) else (400, "bad_request")
    assert (status(answer), error_code(answer)) == expected
    assert left(site) == site.backend.received == []


async def test_what_can_be_read_stays_here(site: Site) -> None:
    whole = SECRET + b"}"
    for body in (b"\xef\xbb\xbf" + whole, SECRET + b',"x":NaN}', whole.decode().encode("utf-32")):
        assert status(await site.exchange(post(body))) == 200
        for coding, encode in ENCODE.items():
            header = b"Content-Encoding: " + coding.encode()
            assert status(await site.exchange(post(encode(body), header))) == 200
    assert left(site) == []
    assert len(site.backend.received) == 3 * (1 + len(ENCODE))


@pytest.mark.parametrize("size", [10, 300_000])
async def test_what_was_read_and_names_no_model_that_is_here_leaves(site: Site, size: int) -> None:
    pad = b"x" * size
    bodies = [
        (b'{"x":"%b"}' % pad, []),
        (b'{"model":"far","x":"%b"}' % pad, [JSON]),
        (b'\xef\xbb\xbf{"model":"far","x":[NaN,"%b"]}' % pad, [JSON]),
        (b'{"model":"far","x":"&model=a&","y":{"model":"a"},"z":"%b"}' % pad, [JSON]),
        (b'{"x":"{\\"model\\":\\"a\\"}","model":{"a":"%b"}}' % pad, [JSON]),
        (b'["%b"]' % pad, []),
        (b"null", [JSON]),
        (b"x=%b" % pad, [FORM]),
        (part(b"far").replace(b"model", b"x") + pad, [MULTIPART]),
        (gzip.compress(b'{"model":"far","x":"%b"}' % pad), [b"Content-Encoding: gzip"]),
        (
            UPLOAD % (b'{"model":"far","x":"%b","content":"{\\"model\\":\\"a\\"}"}}' % pad),
            [MULTIPART],
        ),
        (UPLOAD % (b'"model":1,' * 100_001), [MULTIPART, b"model-override: far"]),
        (b"", [JSON]),
    ]
    for body, headers in bodies:
        assert status(await site.exchange(post(body, *headers))) == 200
    assert left(site) == [body for body, _ in bodies]
    assert site.backend.received == []


async def test_any_body_leaves_with_a_name_that_is_not_here(site: Site) -> None:
    wave = b"RIFF\0\0\0\0WAVE"
    named = [b"model-override: far", b"Content-Type: audio/wav"]
    assert status(await site.exchange(post(wave, *named))) == 200
    assert left(site) == [wave]
    assert status(await site.exchange(post(SECRET, b"model-override: far"))) == 400
    assert status(await site.exchange(post(wave, b"model-override: a"))) == 200
    assert len(left(site)) == 1
    message = json.loads(body_of(await site.exchange(post(wave))))["error"]["message"]
    assert message.startswith("body is neither JSON nor a form")


NAMED = {
    "in the body": post(b'{"model": "qwen"}'),
    "in a form": post(part(b"qwen"), MULTIPART),
    "in a header": post(b"{}", b"model-override: qwen"),
    "in the path": post(b"{}").replace(b"POST /v1", b"POST /upstream/qwen/v1", 1),
    "in the query": post(b"{}").replace(b"completions", b"completions?model=qwen", 1),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("where", NAMED)
async def test_an_unknown_model_leaves_only_if_the_config_names_it(
    lane: str, where: str, tmp_path: Path
) -> None:
    async with running_lane("fast", tmp_path / "far") as far:
        fallback = f"http://127.0.0.1:{far.backend.port}"
        for allowed, expected in (
            ([], 404),
            (["gpt-*"], 404),
            (["gpt-*", "q*n"], 200),
            (["*"], 200),
        ):
            async with running_lane(
                lane, tmp_path, fallback=fallback, fallback_models=allowed
            ) as site:
                far.backend.received.clear()
                answer = await site.exchange(NAMED[where])
                assert (status(answer), len(far.backend.received)) == (expected, expected == 200)
                if expected == 404:
                    assert error_code(answer) == "model_not_found"
                assert status(await site.exchange(post(b"{}"))) == 200, "it names no model"
                assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_a_reload_changes_what_leaves(lane: str, tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path / "far") as far:
        url = f"http://127.0.0.1:{far.backend.port}"
        async with running_lane(lane, tmp_path, fallback=url) as site:
            reloader = site.service.reloader
            model = {"port": site.backend.port, "wake": "up", "sleep": "down", "alive": "ping"}
            for allowed, expected in (([], 404), (["gpt-5"], 200), ([], 404)):
                data = {
                    "models": {"a": model},
                    "state_dir": str(tmp_path),
                    "fallback": url,
                    "fallback_models": allowed,
                }
                reloader.apply(parse_config(data, directory=tmp_path))
                assert status(await site.exchange(post(b'{"model": "gpt-5"}'))) == expected
            assert status(await site.exchange(post(b'{"model": "a"}'))) == 200


def test_fallback_models_need_a_fallback(tmp_path: Path) -> None:
    model = {"port": 1, "wake": "w", "sleep": "s", "alive": "a"}
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": {"a": model}, "fallback_models": ["*"]}, directory=tmp_path)
    assert caught.value.mistakes == ["fallback_models: goes with 'fallback' only"]
