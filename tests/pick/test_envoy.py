"""`llmux pick` and its config of Envoy, with a real Envoy in front of three hosts."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import yaml

from llmux.pick.bootstrap import bootstrap_text
from llmux.pick.clusters import socket_address
from llmux.pick.config import load_pick_config
from tests.certificates import authority, client_context, write_pair
from tests.lanes import ScriptedBackend
from tests.pick.stage import Fleet, ask, envoy_path, needs_envoy, running_fleet, running_host
from tests.servers import chat

pytestmark = [pytest.mark.slow, needs_envoy]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as fleet:
        yield fleet


async def test_models_stay_on_hosts_of_their_own(fleet: Fleet) -> None:
    async with fleet.client() as client:
        for _ in range(4):
            for model in "abc":
                answer = await ask(client, model)
                assert answer.status_code == 200, answer.text
    assert [
        sorted(each.engine.served for each in host.standins.values()) for host in fleet.hosts
    ] == [[0, 0, 4]] * 3
    assert len({fleet.host_of(model).endpoint for model in "abc"}) == 3


async def test_any_content_type_will_do(fleet: Fleet) -> None:
    async with fleet.client() as client:
        for kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
            body = b'{"model": "b", "messages": [{"role": "user", "content": "Hi"}]}'
            answer = await client.post(
                "/v1/chat/completions", content=body, headers={"Content-Type": kind}
            )
            assert answer.status_code == 200, answer.text
    assert fleet.host_of("b").standins["b"].engine.served == 3


async def test_clients_cannot_choose_a_host(fleet: Fleet) -> None:
    async with fleet.client() as client:
        await ask(client, "a")
        other = next(host for host in fleet.hosts if host is not fleet.host_of("a"))
        forged = {
            "x-gateway-destination-endpoint": other.endpoint,
            "x-gateway-destination-endpoint-subset": other.endpoint,
            "x-llmux-model": "b",
            "x-gateway-model-name": "b",
            "x-llmux-client": "somebody",
            "x-envoy-upstream-rq-timeout-ms": "1",
        }
        for _ in range(3):
            assert (await ask(client, "a", headers=forged)).status_code == 200
    assert not other.served
    assert fleet.host_of("a").standins["a"].engine.served == 4


async def test_models_are_listed_and_unknown_ones_refused(fleet: Fleet) -> None:
    async with fleet.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["a", "b", "c"]
        assert listed[0]["llmux"]["hosts"] == 3
        unknown = await ask(client, "nobody")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert (await client.get("/v1/models/b")).json()["id"] == "b"
        assert len((await client.get("/api/tags")).json()["models"]) == 3


async def test_clients_do_not_reach_what_is_for_operators(fleet: Fleet) -> None:
    """Hosts without keys would take them for programs of this machine."""
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    for path in (
        "/control/status", "/control", "//control/status", "/%63ontrol/status", "/x/../control/status",
        "/x/%2e%2e/control/status", "/control%2fstatus", "/v1/..%2fcontrol/status", "/./control/status",
        "/unload", "/api/models/unload/a", "/ui/", "/metrics", "/metrics/", "/metrics?x=1",
    ):  # fmt: skip
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await stream.receive_some()
        assert re.match(rb"HTTP/1.1 (404|400) ", answer), (path, answer[:200])


async def test_bodies_pass_up_to_the_limit(fleet: Fleet) -> None:
    async with fleet.client() as client:
        fitting = await client.post(
            "/v1/chat/completions", json=chat("a", user="x" * (20 << 20)), timeout=60
        )
        assert fitting.status_code == 200, fitting.text
        too_large = await client.post(
            "/v1/chat/completions", json=chat("a", user="x" * (70 << 20)), timeout=60
        )
        assert too_large.status_code == 413


async def test_keys_of_clients_are_checked_and_hidden(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, envoy={"api_keys": ["right"]}) as fleet:
        async with fleet.client() as client:
            assert (await ask(client, "a")).status_code == 401
            for headers in ({"Authorization": "Bearer wrong"}, {"x-llmux-client": "client-1"}):
                assert (await ask(client, "a", headers=headers)).status_code == 401
            for headers in ({"Authorization": "Bearer right"}, {"x-api-key": "right"}):
                assert (await ask(client, "a", headers=headers)).status_code == 200


async def test_streams_are_not_buffered(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, options={"rate": 20, "tokens": 10}) as fleet:
        async with fleet.client() as client:
            async with client.stream(
                "POST", "/v1/chat/completions", json=chat("a", stream=True)
            ) as answer:
                pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) >= 10


async def test_websockets_pass(tmp_path: Path) -> None:
    async def echo(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(UPGRADED)
        while data := await stream.receive_some():
            await stream.send_all(b"\x82\x04" + unmasked(data))

    async with trio.open_nursery() as nursery:
        backend = ScriptedBackend()
        backend.play = echo
        await nursery.start(backend.serve)
        socket = {"port": backend.port, "wake": "true", "sleep": "true", "alive": "true"}
        async with running_fleet(tmp_path, ["a", "b"], settings={"more": {"ws": socket}}) as fleet:
            host, _, port = fleet.url.removeprefix("http://").partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(UPGRADE % b"/v1/realtime?model=ws")
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += await stream.receive_some()
                assert answer.startswith(b"HTTP/1.1 101 ")
                await stream.send_all(b"\x82\x84\0\0\0\0ping")
                assert await stream.receive_some() == b"\x82\x04ping"
        nursery.cancel_scope.cancel()


UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
"""RFC 6455, section 1.3."""


def unmasked(frame: bytes) -> bytes:
    """The payload of a small frame of a client."""
    return bytes(byte ^ frame[2 + i % 4] for i, byte in enumerate(frame[6:]))


async def test_all_connections_may_be_encrypted(tmp_path: Path) -> None:
    tls = write_pair(tmp_path)
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    async with running_fleet(
        tmp_path,
        ["ab", "ab"],
        settings={"tls": tls},
        envoy={"tls": tls},
        scheme="https",
        hosts_tls={"ca": str(ca)},
    ) as fleet:
        async with fleet.client(verify=client_context()) as client:
            for model in "abab":
                assert (await ask(client, model)).status_code == 200


async def test_a_gateway_that_sends_bodies_to_the_picker(tmp_path: Path) -> None:
    """As gateways of the Gateway API do: no filter reads the model, and the picker gets all."""
    async with running_fleet(tmp_path, ["a", "b"], change=as_gateway) as fleet:
        async with fleet.client() as client:
            for model in "abab":
                answer = await ask(client, model)
                assert answer.status_code == 200, answer.text
                assert answer.json()["model"] == model
            large = await client.post(
                "/v1/chat/completions", json=chat("a", user="x" * (1 << 20)), timeout=60
            )
            assert large.status_code == 200, large.text
    assert [host.served for host in fleet.hosts] == [3, 2]


def as_gateway(text: bytes) -> bytes:
    config = yaml.safe_load(text)
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    filters = [each for each in manager["http_filters"] if each["name"] in {"picker", "router"}]
    filters[0]["typed_config"]["processing_mode"] = {
        "request_header_mode": "SEND",
        "response_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_trailer_mode": "SEND",
    }
    manager["http_filters"] = filters
    del manager["upgrade_configs"]
    return yaml.safe_dump(config).encode()


async def test_hosts_may_be_in_a_file(tmp_path: Path) -> None:
    """The same file for Envoy and the picker; a host that is added gets requests."""
    file = tmp_path / "hosts.json"
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(running_host(tmp_path / f"h{name}", [name]))
            for name in "ab"
        ]

        def write(count: int) -> None:
            places = [
                {"endpoint": {"address": socket_address(host.endpoint)}} for host in hosts[:count]
            ]
            made = {
                "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": "hosts",
                "endpoints": [{"lb_endpoints": places}],
            }
            new = tmp_path / "new.json"
            new.write_text(json.dumps({"resources": [made]}))
            new.rename(file)

        write(1)
        async with running_fleet(tmp_path, [], eds_file=str(file)) as fleet:
            async with fleet.client() as client:
                assert (await ask(client, "a")).status_code == 200
                assert (await ask(client, "b")).status_code == 404
                write(2)
                with trio.fail_after(20):
                    while (await ask(client, "b")).status_code != 200:
                        await trio.sleep(0.1)


CONFIGS = {
    "names": "hosts: ['llmux-1.example:3000', '10.0.0.2:3000']",
    "IPv6": "hosts: ['[::1]:3000', '[::1]:3001']\nenvoy: {listen: '[::1]:8080', homes: {a: ['[::1]:3001']}}",
    "a file": "eds_file: hosts.yaml\nweb: null",
    "everything": """
        hosts: ['10.0.0.1:3000', {address: '10.0.0.2:3000', control: 'https://10.0.0.2:3001'}]
        hosts_tls: {name: llmux.example}
        envoy:
          api_keys: [one, two]
          admin: 127.0.0.1:9901
          max_body_bytes: 16MiB
          homes: {a: ['10.0.0.2:3000'], 'org/b': ['10.0.0.1:3000', '10.0.0.2:3000']}
    """,
}


@pytest.mark.parametrize("name", CONFIGS)
async def test_envoy_accepts_each_kind_of_config(name: str, tmp_path: Path) -> None:
    config, made = tmp_path / "pick.yaml", tmp_path / "envoy.yaml"
    (tmp_path / "hosts.yaml").write_text("resources: []\n")
    config.write_text(textwrap.dedent(CONFIGS[name]))
    made.write_text(bootstrap_text(load_pick_config(config)))
    command = [str(envoy_path()), "--mode", "validate", "-c", str(made), "-l", "error"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
