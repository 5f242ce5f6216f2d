"""Whose request it is, and what one client may take: trusted proxies, limits by address."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from llmux.api.guard import check_local
from llmux.config import parse_config
from llmux.errors import Forbidden
from llmux.http.clients import Tally, TrustedProxies, client_key
from llmux.server.connection_limits import at_most, connection_shares
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, running_lane
from tests.servers import ALL_FORMS, running_backends, running_llmux

CHAT = "/v1/chat/completions"
HERE = ("127.0.0.1", 1)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


# ---- Whose request it is ----


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["9.9.9.9, 1.2.3.4"], "1.2.3.4"),  # what stands left may be made up
        ("10.0.0.1", ["9.9.9.9", "1.2.3.4,10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db8::7]:99"], "2001:db8::7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["::ffff:1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.9, 10.0.0.2"], "10.0.0.9"),  # all of them are trusted
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, "], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, evil, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.1.1.1, " * 10_000 + "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4" + ", 10.0.0.2" * 10_000], "10.0.0.2"),
        ("10.0.0.1", ["\xff\0[[]:" * 9], "10.0.0.1"),
        ("5.5.5.5", ["1.2.3.4"], "5.5.5.5"),  # a client that makes it up
        (None, ["1.2.3.4"], "1.2.3.4"),
    ],
)
def test_the_client_behind_trusted_proxies(
    peer: str | None, forwarded: list[str], client: str
) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "unix"])
    headers = [(b"X-Forwarded-For", value.encode("latin-1")) for value in forwarded]
    assert proxies.client(peer, headers) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert TrustedProxies().client("10.0.0.1", [(b"x-forwarded-for", b"1.2.3.4")]) == "10.0.0.1"
    assert TrustedProxies().client(None, [(b"x-forwarded-for", b"1.2.3.4")]) is None


def test_one_client_is_an_address_or_a_64() -> None:
    assert client_key("2001:db8:1:2:3::1") == client_key("2001:db8:1:2:ffff::2")
    assert client_key("2001:db8:1:2::1") != client_key("2001:db8:1:3::1")
    assert client_key("::ffff:1.2.3.4") == client_key("1.2.3.4")
    assert client_key("fe80::1%eth0") == client_key("fe80::2")
    assert len({client_key(each) for each in ("1.2.3.4", "1.2.3.5", None)}) == 3


def test_a_tally_forgets_who_has_nothing() -> None:
    tally = Tally()
    with tally.one_more("1.2.3.4"), tally.one_more("1.2.3.4"):
        assert (tally.of("1.2.3.4"), len(tally)) == (2, 1)
        with pytest.raises(RuntimeError), tally.one_more("1.2.3.5"):
            raise RuntimeError
    assert len(tally) == 0


@pytest.mark.parametrize("lane", LANES)
async def test_what_untrusted_peers_say_of_themselves_is_not_passed_on(
    tmp_path: Path, lane: str
) -> None:
    claims = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "443",
        "X-Real-IP": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
    }

    async def received(**settings: Any) -> dict[str, str]:
        folder = tmp_path / f"{len(settings)}{settings.get('trusted_proxies', [''])[0][:2]}"
        folder.mkdir()
        async with running_lane(lane, folder, **settings) as site, site.client() as client:
            await client.post(CHAT, json={"model": "a"}, headers=claims)
            head = site.backend.received[-1].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
            return {k.lower(): v for k, v in (line.split(": ", 1) for line in head)}

    lowered = {name.lower(): value for name, value in claims.items()}
    for settings in ({}, {"trusted_proxies": ["127.0.0.1"]}):
        headers = await received(**settings)
        assert headers["x-forwarded-for"] == "1.2.3.4, 127.0.0.1"
        kept = {name: headers[name] for name in lowered if name != "x-forwarded-for"}
        assert kept == {k: v for k, v in lowered.items() if k != "x-forwarded-for"}
    headers = await received(trusted_proxies=["10.0.0.0/8"])
    assert headers["x-forwarded-for"] == "1.2.3.4, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"].startswith("127.0.0.1")
    assert not {"x-forwarded-port", "x-real-ip", "forwarded"} & set(headers)


# ---- Who reaches the control API without a key ----


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded",
        "Forwarded-For", "Via", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP", "CF-Ray",
        "X-Original-URL", "X-Original-Forwarded-For", "X-Client-IP", "X-Cluster-Client-IP",
        "CDN-Loop", "Fastly-Client-IP", "X-Envoy-External-Address", "X-Amzn-Trace-Id",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lane", LANES)
async def test_control_refuses_what_a_proxy_adds(tmp_path: Path, lane: str, name: str) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        assert (await client.get("/control/status")).status_code == 200
        for path in ("/control/status", "/ui/"):
            assert (await client.get(path, headers={name: "x"})).status_code == 403


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", ["/control/status", "/ui/"])
async def test_control_refuses_http_1_0(tmp_path: Path, lane: str, path: str) -> None:
    """As `proxy_pass http://127.0.0.1:3000;` without another line asks."""
    request = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:3000\r\nConnection: close\r\n\r\n".encode()
    async with running_lane(lane, tmp_path) as site:
        answer = await site.exchange(request)
        assert answer.split(b" ", 2)[1] == b"403"
        assert b"HTTP/1.0" in answer
    keys: dict[str, Any] = {"control_keys": ["secret"]}
    request = request.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer secret\r\n\r\n")
    async with running_lane(lane, tmp_path, **keys) as site:
        assert (await site.exchange(request)).split(b" ", 2)[1] == b"200"


@pytest.mark.parametrize("lane", LANES)
async def test_a_trusted_proxy_is_no_local_program(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path, trusted_proxies=["127.0.0.0/8"]) as site:
        async with site.client() as client:
            for path in ("/control/status", "/ui/"):
                answer = await client.get(path)
                assert (answer.status_code, "trusted_proxies" in answer.text) == (403, True)
            assert (await client.get("/v1/models")).status_code == 200


def test_a_trusted_proxy_may_be_written_in_other_ways() -> None:
    proxies = TrustedProxies(["127.0.0.1"])
    asked = {"headers": {"host": "localhost"}, "own_hosts": set()}
    check_local(peer=("127.0.0.2", 1), proxies=proxies, **asked)  # type: ignore[arg-type]
    for peer in ("127.0.0.1", "::ffff:127.0.0.1"):
        with pytest.raises(Forbidden):
            check_local(peer=(peer, 1), proxies=proxies, **asked)  # type: ignore[arg-type]


# ---- Requests in line ----


async def ask(site: Site, client: str | None) -> httpx.Response:
    headers = {"X-Forwarded-For": client} if client else {}
    async with site.client() as http:
        return await http.post(CHAT, json={"model": "a"}, headers=headers)


@pytest.mark.parametrize("lane", LANES)
async def test_requests_in_line_are_limited_by_client(tmp_path: Path, lane: str) -> None:
    hooks = FakeHooks()
    hooks.gates["a", "wake"] = trio.Event()
    settings: dict[str, Any] = {
        "limits": {"queued_per_client": 2},
        "trusted_proxies": ["127.0.0.1"],
    }
    async with running_lane(lane, tmp_path, hooks=hooks, **settings) as site:
        answers: list[int] = []

        async def wait(client: str | None) -> None:
            answers.append((await ask(site, client)).status_code)

        async with trio.open_nursery() as nursery:
            for client in ("2001:db8::1", "2001:db8::2", "1.2.3.4", "1.2.3.4", None):
                nursery.start_soon(wait, client)
            await until(lambda: site.service.board.queue_depths["a"] == 5)
            for client in ("2001:db8::3", "1.2.3.4", "9.9.9.9, 1.2.3.4"):
                refused = await ask(site, client)
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (429, "queue_full")
                assert "limits.queued_per_client" in error["message"]
                assert int(refused.headers["retry-after"]) > 0
            nursery.start_soon(wait, "5.6.7.8")
            await until(lambda: site.service.board.queue_depths["a"] == 6)
            hooks.gates["a", "wake"].set()
        assert answers == [200] * 6
        assert len(site.service.proxy._lines.tally) == 0
        assert (await ask(site, "1.2.3.4")).status_code == 200


@pytest.mark.parametrize("lane", LANES)
async def test_who_leaves_the_line_has_its_place_back(tmp_path: Path, lane: str) -> None:
    hooks = FakeHooks()
    hooks.gates["a", "wake"] = trio.Event()
    async with running_lane(lane, tmp_path, hooks=hooks, limits={"queued_per_client": 1}) as site:
        depths = site.service.board.queue_depths
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, site, "6.6.6.6")  # not believed
                await until(lambda: site.service.board.queue_depths["a"] == 1)
                assert (await ask(site, "7.7.7.7")).status_code == 429
                nursery.cancel_scope.cancel()
            await until(lambda: site.service.board.queue_depths["a"] == 0)
            assert len(site.service.proxy._lines.tally) == 0
        assert depths == {"a": 0}
        hooks.gates["a", "wake"].set()


async def test_a_reload_changes_the_limit(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        lines = site.service.proxy._lines
        assert lines.limit is None
        assert lines.place("1.2.3.4") is lines.place("1.2.3.5")  # nothing is counted
        old = site.service.reloader.config
        data = {
            "models": {"a": {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}},
            "limits": {"queued_per_client": 3},
            "state_dir": str(old.state_dir),
        }
        site.service.reloader.apply(parse_config(data, directory=tmp_path))
        assert lines.limit == 3


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_the_access_log_has_the_client(tmp_path: Path, form: str) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(access_log=True, trusted_proxies=["127.0.0.1"])
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            headers = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4"}
            await client.post(CHAT, json={"model": "a"}, headers=headers)
            await client.get("/v1/models", headers=headers)
            pattern = r"request .*client=1\.2\.3\.4"
            await until(lambda: len(re.findall(pattern, "\n".join(llmux.lines))) == 2)


# ---- Connections ----


def shares(most: int, **settings: Any) -> Callable[[str | None], int | None]:
    data = {
        "models": {"a": {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}},
        "state_dir": "state",
        **settings,
    }
    config = parse_config(data)
    return connection_shares(most, lambda: config)


def test_no_address_has_more_than_half_of_all_connections() -> None:
    share_of = shares(100, trusted_proxies=["10.0.0.0/8"])
    assert share_of("1.2.3.4") == share_of("2001:db8::1") == 50
    assert share_of("127.0.0.1") is share_of("::1") is share_of(None) is None
    assert share_of("10.1.2.3") is None
    assert shares(1)("1.2.3.4") == 1
    share_of = shares(100, limits={"connections_per_client": 7}, trusted_proxies=["10.0.0.1"])
    assert share_of("1.2.3.4") == share_of("127.0.0.1") == 7
    assert share_of("10.0.0.1") is None


async def test_over_tls_an_alert_says_it() -> None:
    """`internal_error` of RFC 8446, section 6.2: TLS has no alert for this."""

    async def serve(stream: trio.SocketStream) -> None:
        raise AssertionError

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(
            trio.serve_listeners, at_most(0, serve, lambda _peer: None, is_tls=True), [listener]
        )
        port = listener.socket.getsockname()[1]
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(5):
            answer = await tcp.receive_some()
        await tcp.aclose()
        nursery.cancel_scope.cancel()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    incoming.write(answer)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.internal.error"):
        tls.do_handshake()


async def test_connections_are_counted_by_client_and_given_back() -> None:
    go_on = trio.Event()
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        served += 1
        with trio.move_on_after(5):
            await go_on.wait()
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        handler = at_most(10, serve, lambda _peer: 2)
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        port = listeners[0].socket.getsockname()[1]

        async def connect(address: str) -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", port, local_address=address)

        first = [await connect("127.0.0.2") for _ in range(2)]
        await until(lambda: served == 2)
        async with await connect("127.0.0.2") as third:
            answer = b"".join([data async for data in third])
            assert answer.startswith(b"HTTP/1.1 503 ")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["code"] == "too_many_connections"
            assert "limits.connections_per_client" in error["message"]
        other = await connect("127.0.0.3")
        await until(lambda: served == 3)
        go_on.set()
        for stream in (*first, other):
            await stream.aclose()
        for number in range(4, 14):  # all are free again, each time
            async with await connect("127.0.0.2") as again:
                await until(lambda number=number: served == number)  # type: ignore[misc]
                assert await again.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_one_address_does_not_lock_others_out(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(limits={"connections": 6, "connections_per_client": 3})
        async with running_llmux(config) as llmux:
            port = int(llmux.url.rpartition(":")[2])
            held = [
                await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2")
                for _ in range(10)
            ]
            transport = httpx.AsyncHTTPTransport(local_address="127.0.0.3")
            async with httpx.AsyncClient(base_url=llmux.url, transport=transport) as good:
                answer = await good.post(CHAT, json={"model": "a"}, timeout=10)
            assert answer.status_code == 200
            for stream in held:
                await stream.aclose()
