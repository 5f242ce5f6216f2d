"""The proxies of docs/operations.md in front of llmux, each with the page's own configuration."""

from __future__ import annotations

import faulthandler
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

from tests.certificates import client_context, write_pair
from tests.documents import ROOT, blocks
from tests.downstream.test_lanes import HANDSHAKE, SWITCHING, body_of
from tests.lanes import OK, Site, running_lane

pytestmark = pytest.mark.slow

NAME = "models.example.org"

LONG_WAIT_S = 65.0
"""More than the minute after which nginx and Traefik give up by default."""

CLIENT = "127.0.0.2"
"""Where clients come from: another address than the proxy's."""


def documented(*signs: str) -> str:
    """The one block of the page that holds all of these."""
    page = ROOT / "docs/operations.md"
    (found,) = [each.code for each in blocks(page) if all(sign in each.code for sign in signs)]
    return found


def replaced(text: str, **by: str) -> str:
    """Replace what has to differ here: a name, ports and paths."""
    pairs = {
        "/etc/ssl/models.pem": by["cert"],
        "/etc/ssl/models.key": by["key"],
        "127.0.0.1:3000": f"127.0.0.1:{by['backend']}",
    }
    for old, new in pairs.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, **by: str) -> list[str]:
    server = replaced(documented("server_name", "proxy_pass"), **by)
    server = server.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1; master_process off;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temp}{server}}}\n"
    )
    return ["nginx", "-e", "stderr", "-c", str(path), "-p", str(folder)]


def caddy(folder: Path, port: int, **by: str) -> list[str]:
    site = replaced(documented("reverse_proxy"), **by)
    path = folder / "Caddyfile"
    path.write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        + site.replace(f"{NAME} {{", f"https://{NAME}:{port} {{")
    )
    return ["caddy", "run", "--config", str(path), "--adapter", "caddyfile"]


def traefik(folder: Path, port: int, **by: str) -> list[str]:
    routes = folder / "llmux.yml"
    routes.write_text(replaced(documented("loadBalancer"), **by))
    path = folder / "traefik.yml"
    entry = documented("entryPoints", "respondingTimeouts")
    assert '":443"' in entry
    entry = entry.replace('":443"', f'"127.0.0.1:{port}"')
    path.write_text(entry.replace("/etc/traefik/llmux.yml", str(routes)))
    return ["traefik", f"--configFile={path}"]


PROXIES: dict[str, Callable[..., list[str]]] = {"nginx": nginx, "caddy": caddy, "traefik": traefik}


@dataclass
class Front:
    """A proxy in front of llmux."""

    name: str
    port: int
    site: Site

    def client(self, **options: object) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(verify=client_context(), local_address=CLIENT)
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            transport=Named(transport),
            timeout=120,
            headers={"Host": NAME},
        )

    async def connect(self) -> trio.SSLStream[trio.SocketStream]:
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port, local_address=CLIENT)
        tls = trio.SSLStream(tcp, client_context(), server_hostname=NAME, https_compatible=True)
        await tls.do_handshake()
        return tls


class Named(httpx.AsyncBaseTransport):
    """Asks for the certificate of the name that the proxy serves."""

    def __init__(self, inner: httpx.AsyncHTTPTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": NAME}
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answers(port: int, process: trio.Process) -> None:
    with trio.fail_after(30):
        while True:
            assert process.returncode is None, "the proxy has ended"
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                await trio.sleep(0.05)
            else:
                return


@asynccontextmanager
async def running(name: str, folder: Path, site: Site) -> AsyncIterator[Front]:
    port = free_port()
    pair = write_pair(folder, [NAME])
    command = PROXIES[name](folder, port, backend=str(site.port), **pair)
    with (folder / "log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"},
            executable=shutil.which(command[0]),
        )  # fmt: skip
        try:
            await answers(port, process)
            yield Front(name, port, site)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(10):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()


@pytest.fixture(params=PROXIES)
async def front(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Front]:
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} on this machine")
    (tmp_path / "proxy").mkdir()
    (tmp_path / "llmux").mkdir()
    folder = tmp_path / "llmux"
    async with running_lane("fast", folder, trusted_proxies=["127.0.0.1"]) as site:
        async with running(name, tmp_path / "proxy", site) as front:
            yield front


CHAT = "/v1/chat/completions"


async def test_a_documented_proxy(front: Front) -> None:
    """One test with the long wait in the background, since that takes longest."""
    faulthandler.cancel_dump_traceback_later()  # it is longer than that, too
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_long_wait_is_not_cut, front)
        await trio.sleep(0.5)
        await _who_asks_is_known(front)
        await _a_large_body_passes(front)
        await _websockets_pass(front)
        await _pieces_arrive_by_themselves(front)
        await _who_leaves_is_noticed(front)
        await _control_is_closed(front)


async def play_by_path(stream: trio.SocketStream, request: bytes) -> None:
    """Play what the request asks for by its path."""
    path = request.split(b" ", 2)[1]
    if path.endswith(b"/late"):
        await trio.sleep(LONG_WAIT_S)
        await stream.send_all(OK)
    elif b"Upgrade: websocket" in request:
        await stream.send_all(SWITCHING)
        while data := await stream.receive_some():
            await stream.send_all(data)
    else:
        await stream.send_all(OK)


async def _long_wait_is_not_cut(front: Front) -> None:
    front.site.backend.play = play_by_path
    async with front.client() as client:
        answer = await client.post("/v1/late", json={"model": "a"})
        assert (answer.status_code, answer.text) == (200, "ok")


async def _who_asks_is_known(front: Front) -> None:
    """The client's address is what the proxy has seen, not what the client says."""
    async with front.client() as client:
        forged = {"X-Forwarded-For": "192.0.2.66", "X-Forwarded-Proto": "http"}
        answer = await client.post(CHAT, json={"model": "a"}, headers=forged)
        assert (answer.status_code, answer.text) == (200, "ok")
    head = front.site.backend.received[-1].partition(b"\r\n\r\n")[0].decode().lower()
    assert "x-forwarded-proto: https" in head
    hops = re.search(r"x-forwarded-for: (.*)", head)
    assert hops is not None
    assert CLIENT in hops[1].split(", ")
    ended = front.site.service.proxy.journeys.list(100).requests
    assert {each.client for each in ended if each.path.startswith("/v1/late")} == {CLIENT}


async def _a_large_body_passes(front: Front) -> None:
    body = json.dumps({"model": "a", "prompt": "x" * (20 << 20)}).encode()
    async with front.client() as client:
        assert (await client.post(CHAT, content=body)).text == "ok"
    assert body_of(front.site.backend.received[-1]) == body


async def _websockets_pass(front: Front) -> None:
    frame = b"\x81\x83\0\0\0\0abc"
    async with await front.connect() as stream:
        await stream.send_all(re.sub(rb"Host: [^\r]*", b"Host: " + NAME.encode(), HANDSHAKE))
        with trio.fail_after(10):
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            assert received.startswith(b"HTTP/1.1 101 "), received
            await stream.send_all(frame)
            while frame not in received:
                received += await stream.receive_some()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def _pieces_arrive_by_themselves(front: Front) -> None:
    """The next piece is not sent before the last has arrived: a proxy that buffers would hang."""
    send, receive = trio.open_memory_channel[bytes](0)

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        if b"/late" in request.partition(b"\r\n")[0]:
            await play_by_path(stream, request)
            return
        await stream.send_all(STREAM)
        async for data in receive:
            await stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))
        await stream.send_all(b"0\r\n\r\n")

    front.site.backend.play = answer
    async with front.client() as client:
        async with client.stream("POST", CHAT, json={"model": "a", "stream": True}) as response:
            pieces = response.aiter_raw()
            for number in range(20):
                await send.send(b"data: %d\n\n" % number)
                with trio.fail_after(5):
                    assert await anext(pieces) == b"data: %d\n\n" % number
            send.close()
            assert [piece async for piece in pieces] == []


async def _who_leaves_is_noticed(front: Front) -> None:
    has_left = trio.Event()

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        if b"/late" in request.partition(b"\r\n")[0]:
            await play_by_path(stream, request)
            return
        await stream.send_all(STREAM + b"9\r\ndata: 1\n\n\r\n")
        assert not await stream.receive_some()
        has_left.set()

    front.site.backend.play = answer
    async with front.client() as client:
        async with client.stream("POST", CHAT, json={"model": "a", "stream": True}) as response:
            await anext(response.aiter_raw())
    with trio.fail_after(10):
        await has_left.wait()


async def _control_is_closed(front: Front) -> None:
    async with front.client() as client:
        for path in ("/control/status", "/ui/", "/ui", "/unload", "/api/models/unload/a"):
            assert (await client.get(path)).status_code in {403, 404}, path
        assert (await client.get("/v1/models")).status_code == 200
