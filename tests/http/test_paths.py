"""Paths: llmux's own, slashes that are too many, redirects, and requests that name no model."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import trio

from llmux.config import parse_config
from llmux.errors import ConfigError
from llmux.http.paths import Whereabouts, own_path, relative, tidy
from tests.downstream.test_lanes import body_of, error_code, ok, post, status
from tests.lanes import LANES, Site, running_lane
from tests.proxy.test_stored import ask, model_of
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (b"/v1/models", b"/v1/models"),
        (b"/v1/models/", b"/v1/models"),
        (b"//v1//models//", b"/v1/models"),
        (b"/v1/models/a", b"/v1/models/a"),
        (b"/v1//models//data/m/", b"/v1/models//data/m/"),
        (b"/models", b"/models"),
        (b"/models/", b"/models"),
        (b"//models/a", b"/models/a"),
        (b"/control//status", b"/control/status"),
        (b"//control/status/", b"/control/status"),
        (b"/control//logs//data/m", b"/control/logs//data/m"),
        (b"/ui", b"/ui"),
        (b"/ui/", b"/ui/"),
        (b"//ui//", b"/ui/"),
        (b"//ui//js/app.js", b"/ui/js/app.js"),
        (b"/metrics/", b"/metrics"),
        (b"//health", b"/health"),
        (b"/api/tags/", b"/api/tags"),
        (b"/api//version", b"/api/version"),
        (b"/api/show", None),
        (b"/api/chat/", None),
        (b"/controls//x", None),
        (b"//controls", None),
        (b"/upstream/a//v1/models", None),
        (b"/./control", None),
        (b"//..//control", None),
        (b"/%2fcontrol", None),
        (b"//v1//chat/completions/", None),
    ],
)
def test_own_paths_with_slashes_too_many(path: bytes, own: bytes | None) -> None:
    assert own_path(path, b"GET") == own


def test_the_root_is_own_for_those_who_look() -> None:
    assert own_path(b"/", b"GET") == own_path(b"//", b"HEAD") == b"/"
    assert own_path(b"/", b"POST") is own_path(b"/") is None


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        (b"/v1//chat/completions", b"/v1/chat/completions"),
        (b"//v1/chat/completions/?a=//b/", b"/v1/chat/completions?a=//b/"),
        (b"/api/chat/", b"/api/chat"),
        (b"/docs/", b"/docs/"),
        (b"/a//", b"/a/"),
        (b"/", b"/"),
        (b"*", b"*"),
        (b"/v1/x%2F%2Fy", b"/v1/x%2F%2Fy"),
    ],
)
def test_what_is_forwarded(target: bytes, forwarded: bytes) -> None:
    assert tidy(target) == forwarded


BACKEND = "http://127.0.0.1:8001"


@pytest.mark.parametrize(
    ("base", "asked", "below", "location", "meant"),
    [
        (BACKEND, "/v1/x/", "", "http://127.0.0.1:8001/v1/x?y=1#z", "/v1/x?y=1#z"),
        (BACKEND, "/v1/x/", "", "HTTP://LOCALHOST:8001/v1/x", "/v1/x"),
        (BACKEND, "/v1/x/", "", "//127.0.0.1:8001/v1/x", "/v1/x"),
        (BACKEND, "/v1/x/", "", "http://127.0.0.1:8001", "/"),
        (BACKEND, "/v1/x", "", "/v1/y", "/v1/y"),
        (BACKEND, "/v1/x", "", "y?z", "/v1/y?z"),
        (BACKEND, "/upstream/a/x", "/upstream/a", "/login", "/upstream/a/login"),
        (BACKEND, "/upstream/a/x", "/upstream/a", "http://127.0.0.1:8001/x/", "/upstream/a/x/"),
        (BACKEND, "/upstream/a/x", "/upstream/a", "http://llmux:3000/x/", "/upstream/a/x/"),
        (
            BACKEND,
            "/upstream/a/x",
            "/upstream/a",
            "http://llmux:3000/upstream/a/y",
            "/upstream/a/y",
        ),
        (BACKEND, "/upstream/a/x/y", "/upstream/a", "z", "/upstream/a/x/z"),
        (BACKEND, "/upstream/qwen:7b/", "/upstream/qwen:7b", "/y:z", "/upstream/qwen:7b/y:z"),
        (BACKEND + "/base", "/v1/x", "", "/base/v1/y", "/v1/y"),
        (BACKEND + "/base", "/v1/x", "", "http://127.0.0.1:8001/base", "/"),
        ("https://h", "/x", "", "https://h:443/y", "/y"),
        ("unix:/run/x.sock", "/x", "", "http://localhost/y", "/y"),
    ],
)
def test_where_a_redirect_leads(
    base: str, asked: str, below: str, location: str, meant: str
) -> None:
    where = Whereabouts(
        base, asked=asked.encode(), below=below.encode(), own_host=b"llmux:3000"
    ).applied([(b"Location", location.encode()), (b"X", location.encode())])
    assert where[1] == (b"X", location.encode())
    for prefix in ("", "/behind/a/proxy"):
        asked_at = f"http://llmux:3000{prefix}{asked}"
        if prefix and location in {"/v1/y", "http://llmux:3000/upstream/a/y"}:
            continue  # what was right stays as it was
        assert urljoin(asked_at, where[0][1].decode()) == f"http://llmux:3000{prefix}{meant}"


@pytest.mark.parametrize(
    "location",
    [
        "https://example.org/x", "http://127.0.0.1:8002/x", "http://127.0.0.1/x", "mailto:a@b",
        "http://[::1/x", "http://127.0.0.1:x/y", "http://127.0.0.1.evil:8001/x", "",
        "ftp://127.0.0.1:8001/x",
    ],
)  # fmt: skip
def test_what_points_elsewhere_stays(location: str) -> None:
    where = Whereabouts(BACKEND, asked=b"/v1/x", below=b"", own_host=b"llmux")
    assert where.applied([(b"location", location.encode())]) == [(b"location", location.encode())]


@pytest.mark.parametrize("location", ["?page=2", "#part", "", "z", "../z?x", "./?x=/y"])
@pytest.mark.parametrize("base", [BACKEND, f"{BACKEND}/base"])
def test_what_is_relative_to_what_was_asked_stays(base: str, location: str) -> None:
    where = Whereabouts(base, asked=b"/upstream/a/v1/x", below=b"/upstream/a", own_host=b"llmux")
    assert where.applied([(b"location", location.encode())]) == [(b"location", location.encode())]


def test_relative_to_what_was_asked() -> None:
    assert relative(b"/x", b"/y:z/") == b"./y:z/"
    assert relative(b"/upstream/a", b"/upstream/a/") == b"../upstream/a/"


# ---- On the lanes ----


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, models=("a", "b")) as site:
        yield site


def field(answer: bytes, wanted: bytes) -> bytes:
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    lines = [each.partition(b": ") for each in head]
    return next((value for name, _, value in lines if name.lower() == wanted), b"")


LISTS = [b"/v1/models", b"/v1/models/", b"//v1//models", b"/models", b"/models/", b"/v1//models"]


@pytest.mark.parametrize("path", LISTS)
async def test_the_list_of_models(site: Site, path: bytes) -> None:
    answer = json.loads(body_of(await site.exchange(ask(b"GET", path))))
    assert [each["id"] for each in answer["data"]] == ["a", "b"]


@pytest.mark.parametrize("path", [b"/models/a", b"/v1/models/a/", b"/v1/models//a", b"//models//a"])
async def test_one_model(site: Site, path: bytes) -> None:
    assert json.loads(body_of(await site.exchange(ask(b"GET", path))))["id"] == "a"
    missing = await site.exchange(ask(b"GET", path.replace(b"/a", b"/c")))
    assert error_code(missing) == "model_not_found"


async def test_what_ollamas_clients_ask(site: Site) -> None:
    tags = json.loads(body_of(await site.exchange(ask(b"GET", b"/api/tags"))))["models"]
    assert [each["name"] for each in tags] == [each["model"] for each in tags] == ["a", "b"]
    assert all(len(each["digest"]) == 64 and each["details"]["families"] == [] for each in tags)
    assert json.loads(body_of(await site.exchange(ask(b"GET", b"/api/ps")))) == {"models": []}
    assert status(await site.exchange(post(b'{"model": "b"}'))) == 200
    running = json.loads(body_of(await site.exchange(ask(b"GET", b"/api//ps/"))))["models"]
    assert [(each["name"], each["expires_at"][:2]) for each in running] == [("b", "21")]
    version = json.loads(body_of(await site.exchange(ask(b"GET", b"/api/version"))))
    assert version.keys() == {"version"}
    assert tuple(map(int, version["version"].split("."))) >= (0, 6, 4), "what Copilot asks for"
    assert len(site.backend.received) == 1


async def test_the_root(site: Site) -> None:
    plain = await site.exchange(ask(b"GET", b"/"))
    assert (status(plain), field(plain, b"content-type")) == (200, b"text/plain; charset=utf-8")
    assert b"/ui" in body_of(plain)
    local = ask(b"GET", b"/", b"", b"Accept: text/html,*/*").replace(b"Host: h", b"Host: localhost")
    page = await site.exchange(local)
    assert field(page, b"content-type") == b"text/html; charset=utf-8"
    assert b'<a href="ui/">' in page
    assert status(await site.exchange(ask(b"HEAD", b"/"))) == 200
    assert status(await site.exchange(ask(b"GET", b"/?model=a"))) == 200
    assert site.backend.received == []
    assert status(await site.exchange(ask(b"POST", b"/", b'{"model": "a"}'))) == 200
    assert site.backend.received[0].startswith(b"POST / HTTP/1.1")


@pytest.mark.parametrize(
    "path",
    [
        b"//control/status", b"/control//status", b"/control/status/", b"//control//status//",
        b"//ui/", b"/ui//",
    ],
)  # fmt: skip
async def test_no_slash_leads_around_the_guard(site: Site, path: bytes) -> None:
    local = ask(b"GET", path).replace(b"Host: h", b"Host: localhost")
    assert status(await site.exchange(local)) == 200
    for foreign in (b"X-Forwarded-For: 1.2.3.4", b"Sec-Fetch-Site: cross-site"):
        answer = await site.exchange(local.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % foreign))
        assert (status(answer), error_code(answer)) == (403, "forbidden")


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../control/status", b"//./control/status", b"/v1/models/../../control/status",
        b"/ui/..//control/status", b"/%2e/control/status", b"//control/..//status",
    ],
)  # fmt: skip
async def test_dot_segments_lead_nowhere(site: Site, path: bytes) -> None:
    request = ask(b"GET", path, b"", b"model-override: a")
    answer = await site.exchange(request.replace(b"Host: h", b"Host: localhost"))
    assert status(answer) in {400, 404}
    assert b"active_model" not in answer
    assert site.backend.received == []


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        (b"/v1//chat/completions", b"/v1/chat/completions"),
        (b"//v1/chat/completions/", b"/v1/chat/completions"),
        (b"//upstream/a/v1//chat/completions", b"/v1/chat/completions"),
        (b"/upstream//a/v1/chat/completions/", b"/v1/chat/completions"),
    ],
)
async def test_a_models_path(site: Site, target: bytes, forwarded: bytes) -> None:
    answer = await site.exchange(ask(b"POST", target, b'{"model": "a"}'))
    assert (status(answer), model_of(answer)) == (200, b"a")
    assert site.backend.received[0].startswith(b"POST %b HTTP/1.1" % forwarded)


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        (b"/upstream/a", "/upstream/a/"),
        (b"/upstream/a?x=1&y", "/upstream/a/?x=1&y"),
        (b"//upstream//a", "//upstream//a/"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_model_without_its_slash(
    site: Site, asked: bytes, location: str, method: bytes
) -> None:
    answer = await site.exchange(ask(method, asked))
    assert (status(answer), site.backend.received) == (308, [])
    found = urljoin("http://h" + asked.decode(), field(answer, b"location").decode())
    assert found.removeprefix("http://h").replace("//", "/") == location.replace("//", "/")
    assert site.service.board.models["a"].phase.value == "asleep"
    assert status(await site.exchange(ask(b"GET", b"/upstream/a/"))) == 200
    assert error_code(await site.exchange(ask(b"GET", b"/upstream/c"))) == "model_not_found"


@pytest.mark.parametrize("code", [b"201 Created", b"302 Found", b"307 Temporary Redirect"])
async def test_a_location_at_the_backend(site: Site, code: bytes) -> None:
    there = b"http://localhost:%d/v1/x?y" % site.backend.port
    moved = ok(b"Location: " + there, b"Content-Location: " + there)
    moved = moved.replace(b"200 OK", code, 1)
    site.backend.play = lambda stream, _: stream.send_all(moved)
    for asked, meant in ((b"/v1/x/", "/v1/x?y"), (b"/upstream/a/v1/z/", "/upstream/a/v1/x?y")):
        answer = await site.exchange(ask(b"POST", asked, b'{"model": "a"}'))
        for name in (b"location", b"content-location"):
            found = urljoin("http://h" + asked.decode(), field(answer, name).decode())
            assert found == "http://h" + meant


# ---- Requests that name no model ----


@pytest.mark.parametrize("lane", LANES)
async def test_the_default_model(lane: str, tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path / "2") as other:
        url = f"http://127.0.0.1:{other.backend.port}"
        more: dict[str, Any] = {
            "default_model": "b",
            "fallback": url,
            "fallback_models": ["gpt-*"],
        }
        async with running_lane(lane, tmp_path, models=("a", "b"), **more) as site:
            for request in (
                ask(b"POST", b"/v1/completions", b'{"prompt": "x"}'),
                ask(b"POST", b"/v1/completions", b"[1, 2]"),
                ask(b"GET", b"/v1/files"),
                ask(b"GET", b"/any?x=1"),
            ):
                answer = await site.exchange(request)
                assert (status(answer), model_of(answer)) == (200, b"b")
            assert other.backend.received == []
            assert status(await site.exchange(post(b'{"model": "gpt-5"}'))) == 200
            assert len(other.backend.received) == 1


MULTIPART_BODY = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--b--\r\n'
UNREAD = [
    ask(b"POST", b"/v1/x", gzip.compress(b'{"model": "a"}', mtime=0), b"Content-Encoding: gzip"),
    ask(b"POST", b"/v1/x", b'{"model": "a"', b"X: 1"),
    ask(b"POST", b"/v1/x", b"model: a"),
    ask(b"POST", b"/v1/x", b"x", b"Content-Encoding: identity", b"Content-Encoding: br"),
    ask(b"POST", b"/v1/x", MULTIPART_BODY).replace(b"application/json", b"multipart/form-data"),
    ask(b"POST", b"/v1/x", MULTIPART_BODY).replace(
        b"application/json", b"multipart/form-data; boundary=other"
    ),
    ask(b"POST", b"/v1/x", '{"model": "a"}'.encode("utf-16")),
]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("request_", UNREAD)
async def test_what_cannot_be_read_does_not_go_to_the_default(
    lane: str, request_: bytes, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b"), default_model="b") as site:
        answer = await site.exchange(request_)
        assert (status(answer), model_of(answer)) in {(400, b""), (200, b"a")}
        assert len(site.backend.received) == (status(answer) == 200)
        assert site.service.board.models["b"].phase.value == "asleep"


@pytest.mark.parametrize("lane", LANES)
async def test_a_websocket_to_an_own_path_is_not_the_defaults(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, default_model="a") as site:
        upgrade = [
            b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]  # fmt: skip
        for path in (b"/control/events", b"//control//events", b"/upstream/"):
            request = ask(b"GET", path, b"", *upgrade)
            request = request.replace(b"Connection: close", b"Connection: Upgrade", 1)
            stream = await site.connect()
            async with stream:
                await stream.send_all(request)
                with trio.fail_after(20):
                    assert status(bytes(await stream.receive_some())) == 404
        assert site.backend.received == []


def config_of(more: dict[str, Any], **models: dict[str, Any]) -> dict[str, Any]:
    about = {"port": 1, "wake": "w", "sleep": "s", "alive": "a"}
    return {"models": {name: {**about, **each} for name, each in models.items()}, **more}


@pytest.mark.parametrize("default", ["c", "claude-3", "claude-*", "A"])
def test_a_default_that_is_no_model(default: str, tmp_path: Path) -> None:
    data = config_of({"default_model": default}, a={"aliases": ["claude-*", "gpt"]})
    with pytest.raises(ConfigError) as caught:
        parse_config(data, directory=tmp_path)
    mistake = f"default_model: {default!r} is no model, nor an alias of one"
    assert caught.value.mistakes == [mistake]
    parse_config({**data, "default_model": "gpt"}, directory=tmp_path)


@pytest.mark.parametrize("lane", LANES)
async def test_aliases_are_listed_on_demand(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        aliased = {"port": site.backend.port, "aliases": ["gpt-4o", "claude-*"]}
        state = {"state_dir": str(site.service.reloader.config.state_dir)}
        listed = {}
        for wanted in (False, True):
            data = config_of({**state, "list_aliases": wanted}, a=aliased)
            site.service.reloader.apply(parse_config(data, directory=tmp_path))
            answer = json.loads(body_of(await site.exchange(ask(b"GET", b"/v1/models"))))
            one = json.loads(body_of(await site.exchange(ask(b"GET", b"/v1/models/gpt-4o"))))
            any_one = json.loads(body_of(await site.exchange(ask(b"GET", b"/v1/models/claude-3"))))
            tags = json.loads(body_of(await site.exchange(ask(b"GET", b"/api/tags"))))["models"]
            names = [each["id"] for each in answer["data"]]
            assert names == [each["name"] for each in tags]
            facts = {each["id"]: each["llmux"].get("alias_of") for each in answer["data"]}
            listed[wanted] = (facts, one["id"], any_one["id"])
        assert listed[False] == ({"a": None}, "a", "a")
        assert listed[True] == ({"a": None, "gpt-4o": "a"}, "gpt-4o", "a")


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_in_all_forms(form: str, tmp_path: Path) -> None:
    async with (
        running_backends(tmp_path, "a", "b") as rack,
        running_llmux(rack.write_config(default_model="b"), form) as llmux,
        llmux.client() as client,
    ):
        for path in ("/models", "/v1//models", "/v1/models/"):
            answer = (await client.get(path)).json()
            assert [each["id"] for each in answer["data"]] == ["a", "b"]
        assert "/ui" in (await client.get("/")).text
        assert (await client.get("/api/tags")).json()["models"][0]["name"] == "a"
        assert (await client.get(f"{llmux.url}//control/status")).json()["active_model"] is None
        foreign = await client.get(f"{llmux.url}//control//status/", headers={"Via": "1.1 proxy"})
        assert foreign.status_code == 403
        moved = await client.get("/upstream/a?x=1")
        assert (moved.status_code, rack.hook_log) == (308, [])
        assert moved.next_request is not None
        assert moved.next_request.url.raw_path == b"/upstream/a/?x=1"
        answer = await client.post("/v1//chat/completions/", json=chat("a"))
        assert answer.json()["served_by"] == "a"
        assert rack.backends["a"].received[-1][0].target == b"/v1/chat/completions"
        assert (await client.post("/v1/x", json={"x": 1})).json()["served_by"] == "b"
