"""Keys: who gets in, who does not, and that no key's text gets out."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmux.cli.check import config_table
from llmux.config import Config, load_config, parse_config
from llmux.config.keys import KeyRing
from llmux.errors import ConfigError
from llmux.observe.events import Events
from llmux.server.composition import shell_hooks
from tests.lanes import LANES, Site, running_lane

SECRET = "sk-5ecret0123456789"
OTHER = "sk-0ther"
CONTROL = "ck-5teering"

MODEL: dict[str, Any] = {"port": 8001, "wake": "up", "sleep": "down", "alive": "ping"}

Headers = list[tuple[bytes, bytes]]


def bearer(key: str) -> bytes:
    return b"Authorization: Bearer %b" % key.encode()


def api_key(key: str) -> bytes:
    return b"x-api-key: %b" % key.encode()


def ask(
    *headers: bytes, target: bytes = b"/v1/chat/completions", body: bytes | None = None
) -> bytes:
    """A request that names the model, its body with it; the connection ends behind it."""
    body = b'{"model": "a"}' if body is None else body
    lines = [
        b"%b %b HTTP/1.1" % (b"POST" if body else b"GET", target),
        b"Host: localhost", b"Connection: close",
        *([b"Content-Length: %d" % len(body)] if body else []),
        *headers,
    ]  # fmt: skip
    return b"\r\n".join([*lines, b"", body])


def get(target: bytes, *headers: bytes) -> bytes:
    return ask(*headers, target=target, body=b"")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head_of(answer: bytes) -> list[bytes]:
    return answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")


def forwarded(site: Site) -> list[bytes]:
    """The lines of the last head that the backend got."""
    return site.backend.received[-1].partition(b"\r\n\r\n")[0].split(b"\r\n")


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, api_keys=[OTHER, SECRET]) as site:
        yield site


# ---- The API, on both lanes ----


@pytest.mark.parametrize(
    "key", [bearer(SECRET), api_key(SECRET), b"authorization: bearer  sk-0ther"]
)
async def test_a_key_lets_in(site: Site, key: bytes) -> None:
    assert status(await site.exchange(ask(key))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("sk-wr0ng")],
        [api_key("sk-wr0ng")],
        [api_key("")],
        [bearer("")],
        [bearer(SECRET + "x")],
        [bearer(SECRET[:-1])],
        [b"Authorization: Basic %b" % SECRET.encode()],
        [b"Authorization: %b" % SECRET.encode()],
        [b"x-api-key: Bearer %b" % SECRET.encode()],
        [b"apikey: %b" % SECRET.encode()],
        [b"x-api-key: \xe9"],
    ],
)
async def test_without_a_key_it_is_401(site: Site, headers: list[bytes]) -> None:
    answer = await site.exchange(ask(*headers))
    assert status(answer) == 401
    assert b"www-authenticate: bearer" in head_of(answer)
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("llmux_error", "invalid_api_key")
    assert "Authorization: Bearer" in error["message"]
    assert "x-api-key" in error["message"]
    assert b"sk-" not in answer
    assert site.backend.received == []


async def test_an_unknown_model_is_401_first(site: Site) -> None:
    assert status(await site.exchange(ask(body=b'{"model": "x"}'))) == 401
    assert status(await site.exchange(ask(bearer(SECRET), body=b'{"model": "x"}'))) == 404


async def test_the_body_is_not_read_for_who_has_no_key(site: Site) -> None:
    head, _, _ = ask().partition(b"\r\n\r\n")
    longer = head.replace(b"Content-Length: 14", b"Content-Length: 1000000")
    assert status(await site.exchange(longer + b"\r\n\r\n")) == 401
    chunked = head.replace(b"Content-Length: 14", b"Transfer-Encoding: chunked")
    assert status(await site.exchange(chunked + b"\r\n\r\n5\r\nhello")) == 401


async def test_a_connection_goes_on_after_a_401(site: Site) -> None:
    first = get(b"/x").replace(b"Connection: close\r\n", b"")
    answers = await site.exchange(first, ask(bearer(SECRET)))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"401", b"200"]


@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/models/a"])
async def test_the_list_of_models_needs_a_key(site: Site, path: bytes) -> None:
    answer = await site.exchange(get(path))
    assert (status(answer), b"invalid_api_key" in answer) == (401, True)
    assert b"www-authenticate: bearer" in head_of(answer)
    assert status(await site.exchange(get(path, api_key(SECRET)))) == 200


async def test_health_and_metrics_are_open(site: Site) -> None:
    assert status(await site.exchange(get(b"/health"))) == 200
    assert status(await site.exchange(get(b"/metrics"))) == 200


async def test_a_websocket_needs_a_key(site: Site) -> None:
    handshake = [
        b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    request = get(b"/ws?model=a", *handshake).replace(b"Connection: close\r\n", b"")
    async with await site.connect() as stream:
        await stream.send_all(request)
        answer = b""
        while b"invalid_api_key" not in answer:
            answer += await stream.receive_some()
    assert status(answer) == 401
    assert b"www-authenticate: bearer" in head_of(answer)
    assert site.backend.received == []
    async with await site.connect() as stream:
        await stream.send_all(request.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % bearer(SECRET)))
        await stream.receive_some()  # the backend's own no: it speaks no WebSocket
    assert len(site.backend.received) == 1
    assert SECRET.encode() not in site.backend.received[0]


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback_needs_a_key(lane: str, tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path / "far") as far:
        fallback = f"http://127.0.0.1:{far.backend.port}"
        settings: dict[str, Any] = {"api_keys": [SECRET], "fallback": fallback}
        async with running_lane(lane, tmp_path / "near", **settings) as site:
            assert status(await site.exchange(ask(body=b"{}"))) == 401
            assert far.backend.received == []
            assert status(await site.exchange(ask(bearer(SECRET), body=b"{}"))) == 200
            assert SECRET.encode() not in far.backend.received[0]


async def test_the_key_is_not_forwarded(site: Site) -> None:
    await site.exchange(ask(bearer(SECRET), api_key(OTHER)))
    assert not any(b"sk-" in line for line in forwarded(site))
    # A header that is not the key's carrier may be meant for the backend.
    await site.exchange(ask(bearer("backends-own"), api_key(SECRET)))
    assert bearer("backends-own").lower() in [line.lower() for line in forwarded(site)]
    assert not any(SECRET.encode() in line for line in forwarded(site))


@pytest.mark.parametrize("lane", LANES)
async def test_the_key_is_forwarded_where_it_should_be(lane: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_keys": [SECRET], "forward_api_keys": True}
    async with running_lane(lane, tmp_path, **settings) as site:
        await site.exchange(ask(bearer(SECRET)))
        assert bearer(SECRET).lower() in [line.lower() for line in forwarded(site)]


@pytest.mark.parametrize("lane", LANES)
async def test_without_keys_all_is_as_sent(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        await site.exchange(ask(bearer("anything")))
        assert bearer("anything").lower() in [line.lower() for line in forwarded(site)]


async def test_a_models_own_authorization_goes_out(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path, api_keys=[SECRET]) as site:
        upstream = site.service.proxy.upstreams["a"]
        upstream.extra_headers = {"Authorization": "Bearer backends-own"}
        await site.exchange(ask(bearer(SECRET)))
        assert bearer("backends-own") in forwarded(site)
        assert not any(SECRET.encode() in line for line in forwarded(site))


# ---- The control API and the metrics ----


FAR = b"X-Forwarded-For: 203.0.113.7"
FOREIGN = b"Origin: https://ui.example"


@pytest.mark.parametrize("lane", LANES)
async def test_control_keys(lane: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_keys": [SECRET], "control_keys": [CONTROL]}
    async with running_lane(lane, tmp_path, **settings) as site:
        status_of = b"/control/status"
        for headers in ([], [FAR], [bearer(SECRET)], [bearer("sk-wr0ng"), FAR], [FOREIGN]):
            answer = await site.exchange(get(status_of, *headers))
            assert (status(answer), b"invalid_api_key" in answer) == (401, True)
        for headers in ([], [FAR], [FAR, FOREIGN]):
            assert status(await site.exchange(get(status_of, bearer(CONTROL), *headers))) == 200
        switch = ask(api_key(CONTROL), FAR, target=b"/control/switch")
        assert status(await site.exchange(switch)) == 200
        assert site.service.board.active_model == "a"
        # It opens nothing else.
        assert status(await site.exchange(ask(bearer(CONTROL)))) == 401
        assert status(await site.exchange(get(b"/v1/models", bearer(CONTROL)))) == 401


async def test_api_keys_alone_leave_control_to_this_machine(site: Site) -> None:
    assert status(await site.exchange(get(b"/control/status"))) == 200
    assert status(await site.exchange(get(b"/control/status", FAR, bearer(SECRET)))) == 403


@pytest.mark.parametrize(
    ("access", "without", "api", "control"),
    [("open", 200, 200, 200), ("api_key", 401, 200, 401), ("control_key", 401, 401, 200)],
)
async def test_metrics_access(
    tmp_path: Path, access: str, without: int, api: int, control: int
) -> None:
    settings: dict[str, Any] = {
        "api_keys": [SECRET],
        "control_keys": [CONTROL],
        "metrics_access": access,
    }
    async with running_lane("fast", tmp_path, **settings) as site:
        assert status(await site.exchange(get(b"/metrics"))) == without
        assert status(await site.exchange(get(b"/metrics", bearer(SECRET)))) == api
        assert status(await site.exchange(get(b"/metrics", bearer(CONTROL)))) == control
        assert status(await site.exchange(get(b"/health"))) == 200


# ---- Comparing ----


def test_all_keys_are_looked_at_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []
    compare = hmac.compare_digest

    def note(sent: bytes, key: bytes) -> bool:
        looked_at.append(key)
        return bool(compare(sent, key))

    monkeypatch.setattr("llmux.config.keys.hmac.compare_digest", note)
    ring = KeyRing([b"a", b"b", b"c"])
    for key, carriers in ((b"a", {b"x-api-key"}), (b"c", {b"x-api-key"}), (b"d", set())):
        looked_at.clear()
        assert ring.accepts([(b"X-Api-Key", key)]) == carriers
        assert looked_at == [b"a", b"b", b"c"]


def test_what_carries_a_key() -> None:
    ring = KeyRing([b"a", b"b"])
    headers: Headers = [(b"Authorization", b"Bearer a"), (b"X-API-Key", b" b "), (b"x", b"a")]
    assert ring.accepts(headers) == {b"authorization", b"x-api-key"}
    assert ring.accepts(headers[1:]) == {b"x-api-key"}
    assert ring.accepts([]) == set()


# ---- The config ----


def loaded(folder: Path, **top: Any) -> Config:
    return parse_config({"models": {"a": MODEL}, **top}, directory=folder)


def mistakes(folder: Path, **top: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **top)
    return caught.value.mistakes


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team").write_text("\ufeff# ours\r\n one \r\n\n  # old: zero\ntwo#2\n")
    monkeypatch.setenv("TEAM_KEYS", "three,four , five\nsix,")
    config = loaded(tmp_path, api_keys=["zero", {"file": "keys/team"}, {"env": "TEAM_KEYS"}])
    expected = [b"zero", b"one", b"two#2", b"three", b"four", b"five", b"six"]
    assert config.api_keys == KeyRing(expected, ["TEAM_KEYS"])
    assert config.control_keys == KeyRing()


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        (SECRET, "api_keys: expected array, got str"),
        ({SECRET: 1}, "api_keys: expected array, got object"),
        (None, "api_keys: expected array, got null"),
        (["good", ""], "api_keys[1]: the key is empty"),
        ([f"{SECRET} x"], "api_keys[0]: the key must be visible ASCII characters, without spaces"),
        ([f"{SECRET}\n"], "api_keys[0]: the key must be visible ASCII characters, without spaces"),
        ([f"{SECRET}é"], "api_keys[0]: the key must be visible ASCII characters, without spaces"),
        (["\ud800"], "api_keys[0]: the key must be visible ASCII characters, without spaces"),
        ([1234], "api_keys[0]: expected a key in quotes, {file: PATH} or {env: NAME}"),
        ([None], "api_keys[0]: expected a key in quotes, {file: PATH} or {env: NAME}"),
        ([{SECRET: 1}], "api_keys[0]: expected a key in quotes, {file: PATH} or {env: NAME}"),
        ([{"env": [SECRET]}], "api_keys[0]: expected a key in quotes, {file: PATH} or"),
        ([{"file": "a", "env": "B"}], "api_keys[0]: expected a key in quotes, {file: PATH} or"),
        (
            [{"file": "nowhere"}],
            "api_keys[0]: the file 'nowhere' cannot be read: No such file or directory",
        ),
        ([{"file": "."}], "api_keys[0]: the file '.' cannot be read: Is a directory"),
        ([{"file": "~no-such-user/x"}], "api_keys[0]: the file '~no-such-user/x' cannot be read:"),
        ([{"file": "a\0b"}], r"api_keys[0]: the file 'a\x00b' cannot be read: not a usable path"),
        ([{"file": "empty"}], "api_keys[0]: the file 'empty' holds no key: write one a line"),
        ([{"file": "binary"}], "api_keys[0]: the file 'binary' is not UTF-8 text"),
        ([{"file": "spaced"}], "api_keys[0]: line 2 of the file 'spaced' must be visible ASCII"),
        ([{"env": "UNSET"}], "api_keys[0]: the environment variable UNSET is not set"),
        ([{"env": SECRET}], "api_keys[0]: expected the name of an environment variable"),
        ([{"env": "BLANK"}], "api_keys[0]: the environment variable BLANK holds no key: give some"),
        ([{"env": "ODD"}], "api_keys[0]: a key in the environment variable ODD must be visible"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, mistake: str
) -> None:
    (tmp_path / "empty").write_text("# nothing yet\n\n")
    (tmp_path / "binary").write_bytes(SECRET.encode() + b"\xff")
    (tmp_path / "spaced").write_text(f"good\n{SECRET} {SECRET}\n")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("BLANK", " , ")
    monkeypatch.setenv("ODD", f"good,{SECRET}é")
    (line,) = mistakes(tmp_path, api_keys=value)
    assert line.startswith(mistake)
    (line,) = mistakes(tmp_path, control_keys=value)
    assert line.startswith(mistake.replace("api_keys", "control_keys", 1))
    assert SECRET not in line
    line.encode()


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, api_keys=["", 1, "good"], control_keys=[None], port="x")) == 4


@pytest.mark.parametrize(
    ("access", "lists"),
    [("api_key", "'api_keys'"), ("control_key", "'control_keys' or 'read_keys'")],
)
def test_a_door_needs_its_keys(tmp_path: Path, access: str, lists: str) -> None:
    assert mistakes(tmp_path, metrics_access=access) == [
        f"metrics_access: needs {lists}, of which there are none"
    ]
    assert mistakes(tmp_path, metrics_access="shut") == [
        "metrics_access: expected 'open' or 'api_key' or 'control_key', got 'shut'"
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"api_keys: [*{SECRET}]",
        f"api_keys: [!{SECRET} x]",
        f"api_keys: [!{SECRET}'s x]",
        f"api_keys: [!{SECRET}!x x]",
        f"api_keys: [{{{SECRET}: 1, {SECRET}: 2}}]",
        f"api_keys: {{{SECRET}: 1, {SECRET}: 2}}",
        f"api_keys: [{SECRET}: x]",
    ],
)
def test_a_file_that_is_wrong_shows_no_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(f"models: {{a: {json.dumps(MODEL)}}}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert SECRET not in str(caught.value)


def test_nothing_shows_a_key(tmp_path: Path) -> None:
    model = MODEL | {"headers": {"Authorization": f"Bearer {SECRET}"}}
    config = parse_config(
        {"models": {"a": model}, "api_keys": [SECRET], "control_keys": [CONTROL, CONTROL]},
        directory=tmp_path,
    )
    shown = repr(config)
    assert "'headers': " not in shown
    assert "headers={'Authorization': '***'}" in shown
    assert "api_keys=KeyRing(***)" in shown
    assert "control_keys=KeyRing(***, ***)" in shown
    table = config_table(config)
    assert "keys       1 for models, 2 for control" in table
    with_reading = parse_config(
        {"models": {"a": model}, "control_keys": ["c"], "read_keys": [CONTROL]}, directory=tmp_path
    )
    assert "0 for models, 1 for control, 1 for reading" in config_table(with_reading)
    for text in (shown, str(config), repr(config.models["a"]), table, repr(with_reading)):
        assert SECRET not in text
        assert CONTROL not in text
    assert config.models["a"].headers["Authorization"] == f"Bearer {SECRET}"


def test_a_key_that_reads_must_not_steer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one for models, too, as a control key may."""
    (tmp_path / "keys").write_text(f"{CONTROL}\n{OTHER}\n")
    monkeypatch.setenv("READING", f"x,{CONTROL}")
    told = "a key that is in control_keys, too, and would steer: leave it in one of them"
    for read in ([{"file": "keys"}], [{"env": "READING"}], [CONTROL]):
        assert mistakes(tmp_path, control_keys=["x1", CONTROL], read_keys=read) == [
            f"read_keys: {told}"
        ]
    two = mistakes(tmp_path, control_keys=[CONTROL, OTHER], read_keys=[{"file": "keys"}])
    assert two == [f"read_keys: {told.replace('a key that is', '2 keys that are')}"]
    config = loaded(tmp_path, api_keys=[OTHER], control_keys=["c"], read_keys=[OTHER, OTHER])
    assert len(config.read_keys) == 2


def test_rings_compare_by_their_keys() -> None:
    assert KeyRing([b"a"]) == KeyRing([b"a"])
    assert hash(KeyRing([b"a"])) == hash(KeyRing([b"a"]))
    assert KeyRing([b"a"]) != KeyRing([b"b"])
    assert KeyRing([b"a"]) != (b"a",)


async def test_hooks_do_not_get_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEYS", SECRET)
    monkeypatch.setenv("STEERING_KEYS", CONTROL)
    monkeypatch.setenv("LOOKING_KEYS", OTHER)
    monkeypatch.setenv("NO_SECRET", "stays")
    config = parse_config(
        {
            "models": {"a": MODEL | {"wake": "env > environment"}},
            "state_dir": "state",
            "api_keys": [{"env": "TEAM_KEYS"}],
            "control_keys": [{"env": "STEERING_KEYS"}],
            "read_keys": [{"env": "LOOKING_KEYS"}],
        },
        directory=tmp_path,
    )
    await shell_hooks(config, Events(), lambda _: "").of("a").run("wake")
    environment = (tmp_path / "environment").read_text()
    assert "NO_SECRET=stays" in environment
    for gone in ("TEAM_KEYS", "STEERING_KEYS", "LOOKING_KEYS", SECRET, CONTROL, OTHER):
        assert gone not in environment


@pytest.mark.parametrize("lane", LANES)
async def test_no_key_in_logs_or_journal(
    lane: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    keys: dict[str, Any] = {"api_keys": [SECRET], "control_keys": [CONTROL], "read_keys": [OTHER]}
    async with running_lane(lane, tmp_path, **keys) as site:
        await site.exchange(ask(bearer(SECRET)))
        await site.exchange(get(b"/control/status", bearer(OTHER)))
        await site.exchange(ask(api_key("sk-wr0ng")))
        await site.exchange(get(b"/control/status", bearer(CONTROL)))
        metrics = await site.exchange(get(b"/metrics"))
    journal = (tmp_path / "journal.jsonl").read_text()
    assert '"event":"request"' in journal
    for text in (journal, caplog.text, *capfd.readouterr(), metrics.decode()):
        for key in (SECRET, CONTROL, OTHER, "sk-wr0ng"):
            assert key not in text
