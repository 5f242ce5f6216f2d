"""Web pages and a llmux without keys: which may use it, on both lanes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.config import config_schema, parse_config
from llmux.errors import ConfigError, Forbidden
from llmux.proxy.own_site import OwnSite
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, running_lane
from tests.servers import ALL_FORMS, running_backends, running_llmux

PAGE = "https://chat.example.org"
EVIL = "https://evil.example"
MODEL = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}
BODY = b'{"model": "a"}'
PROXY = "10.0.0.1"

UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

ROUTES = [
    b"POST /v1/chat/completions",
    b"POST /v1/messages",
    b"POST /v1/responses",
    b"POST /api/chat",
    b"POST /v1/audio/transcriptions",
    b"OPTIONS /v1/chat/completions",
    b"GET /upstream/a/",
    b"POST /upstream/a/x",
    b"GET /v1/models",
    b"GET /v1/models/a",
    b"GET /v1/realtime?model=a",
    b"PUT /passed/on",
]


def request(
    line: bytes, *headers: str, host: str = "localhost", body: bytes = BODY, upgrade: bytes = b""
) -> bytes:
    method = line.partition(b" ")[0]
    if method in (b"GET", b"OPTIONS"):
        body = b""
    lines = "".join(f"{each}\r\n" for each in (f"Host: {host}", *headers)).encode()
    connection = upgrade or b"Connection: close\r\n"
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return line + b" HTTP/1.1\r\n" + lines + connection + length + b"\r\n" + body


async def status_of(site: Site, *args: Any, **options: Any) -> int:
    """The answer's status."""
    async with await site.connect() as stream:
        await stream.send_all(request(*args, **options))
        answer = b""
        with trio.fail_after(20):
            while b"\r\n\r\n" not in answer:
                more = await stream.receive_some()
                assert more
                answer += more
    return int(answer.split(b" ", 2)[1])


def vet(*headers: tuple[str, str], peer: str | None = "127.0.0.1", **settings: Any) -> bool | None:
    """What is made of a request; None: it is refused."""
    config = parse_config({"models": {"a": MODEL}, **settings})
    raw = [(name.encode(), value.encode()) for name, value in headers]
    try:
        return OwnSite(config).vet(peer, raw)
    except Forbidden:
        return None


FOREIGN = [
    ("Origin: https://evil.example",),
    ("origin: null",),
    ("Origin: http://localhost:5173",),  # another port of this machine
    ("Origin: http://localhost.evil.example",),
    ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site"),
    ("Origin: http://localhost", "Origin: https://evil.example"),
    ("Origin: http://localhost", "Sec-Fetch-Site: cross-site"),
    ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
    ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
    ("Sec-Fetch-Site: Same-Site",),
    ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
]
"""What browsers say of requests that pages of other sites cause, and some more."""


@pytest.mark.parametrize("line", ROUTES)
@pytest.mark.parametrize("lane", LANES)
async def test_pages_of_other_sites_reach_no_route(lane: str, line: bytes, tmp_path: Path) -> None:
    hooks = FakeHooks()
    async with running_lane(
        lane, tmp_path, hooks=hooks, fallback="http://127.0.0.1:9", cors_origins=[PAGE]
    ) as site:
        for headers in FOREIGN:
            assert await status_of(site, line, *headers) == 403
        assert await status_of(site, line, host="evil.example:3000") == 403
        if b"realtime" in line:
            evil = f"Origin: {EVIL}"
            assert await status_of(site, line, evil, upgrade=UPGRADE) == 403
            rebound = {"host": "evil.example", "upgrade": UPGRADE}
            assert await status_of(site, line, "Origin: http://evil.example", **rebound) == 403
        assert (site.backend.received, hooks.calls) == ([], [])


@pytest.mark.parametrize("line", ROUTES[:-2])
@pytest.mark.parametrize("lane", LANES)
async def test_who_is_no_page_of_another_site_reaches_all(
    lane: str, line: bytes, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE]) as site:
        named = ("model-override: a",)
        for host in ("localhost", "llmux:3000", "192.168.1.7:3000", "gpu.lan"):
            assert await status_of(site, line, *named, host=host) == 200
        for headers in (
            (f"Origin: {PAGE}", "Sec-Fetch-Site: cross-site"),
            ("Origin: http://localhost",),
            ("Sec-Fetch-Site: same-origin",),
            ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"),
            ("Sec-Fetch-Mode: cors", "Accept-Language: *"),  # node's fetch, which is no browser
        ):
            assert await status_of(site, line, *named, *headers) == 200


@pytest.mark.parametrize("lane", LANES)
async def test_where_there_are_keys_they_are_the_check(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, api_keys=["secret"]) as site:
        key = "x-api-key: secret"
        for headers in FOREIGN:
            for line in (b"POST /v1/chat/completions", b"GET /v1/models"):
                assert await status_of(site, line, key, *headers, host="evil.example") == 200
                assert await status_of(site, line, *headers) == 401


@pytest.mark.parametrize("lane", LANES)
async def test_health_and_metrics_are_open_to_all(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        for line in (b"GET /health", b"GET /metrics"):
            assert await status_of(site, line, f"Origin: {EVIL}", host="gpu.example.com") == 200


@pytest.mark.parametrize("lane", LANES)
async def test_the_refusal_says_what_to_do(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        for path in (b"POST /v1/chat/completions", b"GET /v1/models"):
            answer = await site.exchange(request(path, f"Origin: {EVIL}"))
            assert b'"code":"forbidden"' in answer
            assert b"name 'https://evil.example' under cors_origins" in answer
            answer = await site.exchange(request(path, host="evil.example"))
            assert b"the host 'evil.example'" in answer
            assert b"name it under hosts in its config" in answer


def test_a_page_without_a_name_is_not_told_to_be_named() -> None:
    """The config refuses 'null', which any page can have."""
    site = OwnSite(parse_config({"models": {"a": MODEL}}))
    with pytest.raises(Forbidden, match="api_keys, or cors_origins: '\\*'") as refusal:
        site.vet(None, [(b"host", b"localhost"), (b"origin", b"null")])
    assert "name 'null'" not in refusal.value.message


async def test_a_new_config_counts_at_once(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        models = {"a": {**MODEL, "port": site.backend.port}}
        line = b"POST /x"
        for settings, status in (
            ({"cors_origins": [EVIL]}, 200),
            ({}, 403),
            ({"cors_origins": "*"}, 200),
        ):
            site.service.proxy.apply(parse_config({"models": models, **settings}))
            assert await status_of(site, line, f"Origin: {EVIL}") == status


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_under_each_server(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
            for path, model in (("/v1/models", {}), ("/v1/x?model=a", {"model-override": "a"})):
                evil = await client.get(path, headers={"Origin": EVIL})
                rebound = await client.get(path, headers={"Host": "evil.example:3000"})
                assert (evil.status_code, rebound.status_code) == (403, 403)
                assert (await client.get(path, headers=model)).status_code == 200
            assert rack.hook_log == ["a wake"]


# ---- Hosts ----


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost", "LOCALHOST:3000", "localhost.", "app.localhost", "127.0.0.1", "127.0.0.1:1",
        "[::1]:3000", "[fe80::1%25eth0]", "192.168.1.7:3000", "8.8.8.8", "llmux", "llmux:3000",
        "gpu-box", "my_service:8080", "llmux.project_default", "gpu.local:3000", "gpu.lan", "x.home",
        "llmux.ai.svc.cluster.local", "host.docker.internal:3000", "nas.home.arpa",
        socket.gethostname(),
    ],
)  # fmt: skip
def test_hosts_that_no_page_can_have(host: str) -> None:
    assert vet(("Host", host)) is False
    if not host:
        return
    assert vet(("host", host), ("Origin", f"http://{host.lower()}")) is True


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:3000", "evil.example.", "localhost.evil.example",
        "127.0.0.1.nip.io", "evil.local.example", "notlocalhost.com", "xn--80ak6aa92e.xn--p1ai",
        "[", "a@localhost.com", "evil.example..", "x" * 200 + ".lan:" + "1" * 200,
    ],
)  # fmt: skip
def test_hosts_that_a_page_may_have(host: str) -> None:
    assert vet(("Host", host)) is None
    assert vet(("Host", host), ("Origin", f"http://{host}")) is None
    assert vet(("Host", host), ("Sec-Fetch-Site", "same-origin")) is None
    assert vet(("Host", "localhost"), ("Host", host)) is None


def test_no_host_is_that_of_no_browser() -> None:
    assert vet(("Accept", "*/*")) is False


def test_hosts_of_the_config() -> None:
    hosts: dict[str, Any] = {"hosts": ["LLM.example.org", "*.tail1.ts.net"]}
    for host in ("llm.example.org", "llm.example.org:8080", "Llm.Example.Org.", "x.y.tail1.ts.net"):
        assert vet(("Host", host), **hosts) is False
    for host in ("a.llm.example.org", "example.org", "tail1.ts.net", "xtail1.ts.net"):
        assert vet(("Host", host), **hosts) is None
    assert vet(("Host", "evil.example"), hosts="*") is False
    assert vet(("Host", "evil.example"), ("Origin", EVIL + ":1"), hosts="*") is None
    assert vet(("Host", "gpu.example.org"), host="gpu.example.org") is False


def test_an_allowed_page_comes_by_whichever_name() -> None:
    asked = (("Host", "gpu.example.com"), ("Origin", PAGE), ("Sec-Fetch-Site", "cross-site"))
    assert vet(*asked, cors_origins=[PAGE]) is True
    assert vet(*asked, cors_origins="*") is True
    assert vet(("Host", "gpu.example.com"), cors_origins="*") is False
    assert vet(*asked, ("Origin", EVIL), cors_origins=[PAGE]) is None


# ---- Proxies ----


def test_behind_a_proxy_that_names_the_page() -> None:
    """nginx's own Host is that of the address it passes on to."""
    page = ("Origin", "https://llm.example.org")
    host = ("Host", "127.0.0.1:3000")
    assert vet(host, page) is None
    # Browsers say so to https and this machine only, where no name can be rebound.
    assert vet(host, page, ("Sec-Fetch-Site", "same-origin")) is True
    forwarded = ("X-Forwarded-Host", "llm.example.org")
    secure = ("X-Forwarded-Proto", "https")
    trusted: dict[str, Any] = {"peer": PROXY, "trusted_proxies": [PROXY]}
    assert vet(host, page, forwarded, secure, **trusted) is True
    assert vet(host, page, forwarded, hosts=["llm.example.org"], **trusted) is True
    assert vet(host, page, forwarded, **trusted) is None
    assert vet(host, page, forwarded, secure, peer=PROXY) is None
    assert vet(host, ("Origin", EVIL), forwarded, secure, **trusted) is None


def test_a_name_that_a_client_has_reached_by_tls_is_not_rebound() -> None:
    host = ("Host", "llm.example.org")
    trusted: dict[str, Any] = {"peer": PROXY, "trusted_proxies": [PROXY]}
    secure = ("X-Forwarded-Proto", "https")
    assert vet(host, **trusted) is None
    assert vet(host, secure, **trusted) is False
    assert vet(host, secure, peer=PROXY) is None
    assert vet(host, ("X-Forwarded-Proto", "https, http"), **trusted) is None
    assert vet(host, secure, ("Sec-Fetch-Site", "cross-site"), **trusted) is None


def test_what_a_page_adds_itself_opens_nothing() -> None:
    local = ("X-Forwarded-Host", "localhost")
    evil = ("Host", "evil.example")
    assert vet(evil, local) is None
    assert vet(evil, local, peer=PROXY, trusted_proxies=[PROXY]) is None
    assert (
        vet(("Host", "localhost"), ("Origin", EVIL), ("X-Forwarded-Host", "evil.example")) is None
    )


# ---- The config ----


@pytest.mark.parametrize(
    ("hosts", "mistake"),
    [
        (["a.example:80"], "[0]: expected a host name such as llm.example.org or *.example.org,"),
        (["https://a.example"], "[0]: expected a host name such as"),
        (["*"], "got '*' (for all hosts: hosts: '*')"),
        (["a.*"], "[0]: expected a host name"),
        ("a.example", ": expected array, got str"),
    ],
)
def test_mistakes_in_the_config(hosts: object, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": {"a": MODEL}, "hosts": hosts})
    assert mistake in caught.value.mistakes[0]
    assert len(caught.value.mistakes) == 1


def test_the_schema() -> None:
    keys = config_schema()["$defs"]["Config"]["properties"]
    assert list(keys["hosts"]["default"]) == []
    assert "Public names" in keys["hosts"]["description"]
