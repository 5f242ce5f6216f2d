"""The gRPC server, and what it listens to, over the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import msgspec
import pytest

from llmux.observe.schemas.outlook import Outlook
from llmux.pick import discovery, subscribing
from llmux.pick.config import PickConfig, load_pick_config
from llmux.pick.messages import (
    NOT_SERVING,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
    ProcessingResponse,
)
from llmux.pick.run import Picker
from llmux.pick.service import EXT_PROC, HEALTH, CannotListen, serving
from tests.pick.outlooks import model, outlook

T = TypeVar("T")

PATIENCE_S = 30
"""The bound of each test."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """The picker runs under asyncio, unlike the rest of llmux."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


class FakeHost:
    """A control API that has nothing but its event stream.

    Attributes:
        endpoint: Its address.
        heads: The heads of the requests that it got.
        status: What it answers.
    """

    def __init__(self, said: Outlook) -> None:
        self.said = said
        self.endpoint = ""
        self.heads: list[bytes] = []
        self.status = b"200 OK"
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = b"HTTP/1.1 %s\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head % self.status)
        if not self.status.startswith(b"200"):
            writer.close()
            return
        self._writers.append(writer)
        writer.write(b'id: b-1\nevent: status\ndata: {"outlook": 1}\n\n: a comment\n\n')
        self.say(self.said)

    def say(self, said: Outlook) -> None:
        """Tell an outlook, in two pieces."""
        text = b"event: outlook\ndata: %b\n\n" % msgspec.json.encode(said)
        self.write(text[:20])
        self.write(text[20:])

    def write(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)

    def hang_up(self) -> None:
        while self._writers:
            self._writers.pop().transport.abort()


@asynccontextmanager
async def fake_host(said: Outlook) -> AsyncIterator[FakeHost]:
    host = FakeHost(said)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    host.endpoint = f"127.0.0.1:{address[1]}"
    try:
        yield host
    finally:
        host.hang_up()
        server.close()


@asynccontextmanager
async def following(config: PickConfig) -> AsyncIterator[Picker]:
    picker = Picker(config)
    task = asyncio.create_task(picker.follow())
    try:
        yield picker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def config_of(folder: Path, text: str) -> PickConfig:
    path = folder / "pick.yaml"
    path.write_text(text)
    return load_pick_config(path)


def with_hosts(test: Callable[..., Awaitable[None]], folder: Path, text: str = "") -> None:
    """Run a test with two hosts, `a` on the first one and `b` on both, and a picker."""

    async def main() -> None:
        async with (
            fake_host(outlook(a=model(), b=model(3.0))) as first,
            fake_host(outlook(b=model())) as second,
        ):
            hosts = f"hosts: [{first.endpoint}, {second.endpoint}]\n{text}"
            async with following(config_of(folder, hosts)) as picker:
                await test(picker, first, second)

    run(main())


@asynccontextmanager
async def channel_to(picker: Picker) -> AsyncIterator[grpc.aio.Channel]:
    made = serving("127.0.0.1:0", picker.exchange, picker.is_ready)
    async with made as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    check = channel.unary_unary(
        f"/{HEALTH}/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return int((await check(HealthCheckRequest(service=service))).status)


async def picked(channel: grpc.aio.Channel, name: str) -> Any:
    process = channel.stream_stream(
        f"/{EXT_PROC}/Process",
        request_serializer=ProcessingRequest.SerializeToString,
        response_deserializer=ProcessingResponse.FromString,
    )
    header = {"key": "x-llmux-model", "raw_value": name.encode()}
    stream = process()
    await stream.write(ProcessingRequest(request_headers={"headers": {"headers": [header]}}))
    answer = await stream.read()
    await stream.done_writing()
    return answer


def destination(answer: Any) -> str:
    metadata = answer.dynamic_metadata.fields["envoy.lb"].struct_value
    return str(metadata.fields["x-gateway-destination-endpoint"].string_value)


def test_requests_follow_what_hosts_say(tmp_path: Path) -> None:
    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        async with channel_to(picker) as channel:
            await until(lambda: [host.trouble for host in picker.table] == ["", ""])
            assert destination(await picked(channel, "a")) == first.endpoint
            assert destination(await picked(channel, "b")) == f"{second.endpoint},{first.endpoint}"
            second.say(outlook("cordoned", b=model()))
            host = picker.table.hosts[second.endpoint]
            await until(lambda: host.outlook is not None and host.outlook.state == "cordoned")
            assert destination(await picked(channel, "b")) == first.endpoint
            assert (await picked(channel, "nobody")).immediate_response.status.code == 404

    with_hosts(test, tmp_path)


def test_a_host_is_found_again(tmp_path: Path) -> None:
    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        host = picker.table.hosts.get
        await until(lambda: picker.is_ready() and len(first.heads) == 1)
        await until(lambda: not picker.table.hosts[first.endpoint].trouble)
        first.hang_up()
        await until(lambda: len(first.heads) == 2)
        await until(lambda: (found := host(first.endpoint)) is not None and not found.trouble)

    with_hosts(test, tmp_path)


def outlook_with(**numbers: object) -> bytes:
    usual = msgspec.to_builtins(model())
    return msgspec.json.encode(
        {"at": 0, "boot": "b", "state": "ready", "models": {"b": {**usual, **numbers}}}
    )


@pytest.mark.parametrize(
    "data",
    [
        b"[1]",
        b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        outlook_with(running=-1),
        outlook_with(max_in_flight=0),
        outlook_with(wait_secs=-1.0),
        outlook_with(cost_secs=1e200),
        outlook_with(waiting=10**400),
        b"\ndata: ".join([b"x" * 1000] * 100),
        b"x" * 100_000,
    ],
    ids=["type", "deep", "running", "slots", "wait", "cost", "waiting", "event", "line"],
)
def test_what_one_host_says_wrongly_is_its_own_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("llmux.pick.events.MOST_BYTES", 50_000)

    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        await until(lambda: len(picker.table.models) == 2)
        bad, good = picker.table.hosts[second.endpoint], picker.table.hosts[first.endpoint]
        second.status = b"404 Not Found"  # when it is asked again
        second.write(b"event: outlook\ndata: %b\n\n" % data)
        await until(lambda: bool(bad.trouble))
        first.say(outlook(a=model(), b=model(4.0)))
        await until(lambda: good.outlook is not None and good.outlook.models["b"].wait_secs == 4.0)
        async with channel_to(picker) as channel:
            assert destination(await picked(channel, "b")) == f"{first.endpoint},{second.endpoint}"

    with_hosts(test, tmp_path)


def test_a_host_that_says_much_leaves_time_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribing, "LONGEST_REST_S", PATIENCE_S)

    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        await until(lambda: len(picker.table.models) == 2)
        hosts = [picker.table.hosts[each.endpoint] for each in (first, second)]
        monkeypatch.setattr(subscribing, "REST", 1e9)
        second.say(outlook(b=model(1.0)))
        await until(lambda: hosts[1].view.model("b") == model(1.0))
        second.say(outlook(b=model(2.0)))
        monkeypatch.setattr(subscribing, "REST", 0.0)
        for wait in (1.0, 2.0, 3.0):
            first.say(outlook(b=model(wait)))
            await until(lambda wait=wait: hosts[0].view.model("b") == model(wait))  # type: ignore[misc]
        assert hosts[1].view.model("b") == model(1.0)

    with_hosts(test, tmp_path)


def test_a_host_whose_answer_does_not_begin_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribing, "CONNECT_S", 0.3)
    monkeypatch.setattr(subscribing, "SILENT_S", 0.3)

    writers: list[asyncio.StreamWriter] = []

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.01)

    async def main() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with following(config_of(tmp_path, f"hosts: [{endpoint}]")) as picker:
            await until(lambda: bool(picker.table.hosts))
            host = picker.table.hosts[endpoint]
            await until(lambda: "its answer does not begin" in host.trouble)
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)  # until `drip` has seen it

    run(main())


def test_each_key_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "FIRST_PAUSE_S", 0.001)

    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        first.status = b"401 Unauthorized"
        await until(lambda: len(first.heads) >= 1)
        host = picker.table.hosts[first.endpoint]
        first.hang_up()
        await until(lambda: "refuses the key" in host.trouble)
        await until(lambda: any(b"Bearer new" in head for head in first.heads))
        assert b"Bearer old" in first.heads[0]
        first.status = b"200 OK"
        await until(lambda: not host.trouble)

    with_hosts(test, tmp_path, "read_keys: [old, new]")


def test_a_picker_that_hears_nobody_is_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        picker = Picker(config_of(tmp_path, "hosts: ['127.0.0.1:1']"))
        async with channel_to(picker) as channel:
            assert await health(channel) == NOT_SERVING
            assert await health(channel, "liveness") == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(channel, "something")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    async def test(picker: Picker, *_: FakeHost) -> None:
        await until(picker.is_ready)
        async with channel_to(picker) as channel:
            assert await health(channel) == SERVING
            assert await health(channel, EXT_PROC) == SERVING

    run(main())
    with_hosts(test, tmp_path)


def test_an_address_in_use_is_an_error(tmp_path: Path) -> None:
    async def test(picker: Picker, first: FakeHost, _: FakeHost) -> None:
        with pytest.raises(CannotListen, match=f"cannot listen on {first.endpoint}"):
            async with serving(first.endpoint, picker.exchange, picker.is_ready):
                pass

    with_hosts(test, tmp_path)


def test_a_file_of_hosts_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "LOOK_S", 0.005)
    file = tmp_path / "hosts.json"

    def write(*ports: int) -> None:
        places = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}}
            for p in ports
        ]
        assignment = {"cluster_name": "hosts", "endpoints": [{"lb_endpoints": places}]}
        new = file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode({"resources": [assignment]}))
        new.rename(file)

    async def main() -> None:
        write(1)
        async with following(config_of(tmp_path, "eds_file: hosts.json")) as picker:
            await until(lambda: set(picker.table.hosts) == {"127.0.0.1:1"})
            write(1, 2)
            await until(lambda: len(picker.table.hosts) == 2)
            kept = picker.table.hosts["127.0.0.1:2"]
            file.write_text("{")  # for a moment
            await asyncio.sleep(0.02)
            write(2)
            await until(lambda: list(picker.table.hosts.values()) == [kept])

    run(main())


def test_each_address_of_a_name_is_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LOOK_UP_S", 0.005)
    answers = [["10.0.0.1:3000", "10.0.0.2:3000"], [], ["10.0.0.2:3000"]]

    async def look_up(name: str, port: int) -> list[str]:
        assert (name, port) == ("llmux.example", 3000)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(discovery, "_look_up", look_up)
    text = "hosts: [llmux.example:3000]\nhosts_tls: {}\ncontrol_port: 3001"

    async def main() -> None:
        found = discovery.found_addresses(config_of(tmp_path, text))
        seen = [[(a.endpoint, a.control, a.name) for a in await anext(found)] for _ in range(2)]
        await found.aclose()
        assert seen[0] == [
            ("10.0.0.1:3000", "https://10.0.0.1:3001", "llmux.example"),
            ("10.0.0.2:3000", "https://10.0.0.2:3001", "llmux.example"),
        ]
        assert seen[1] == seen[0][1:]  # a failed look-up in between changed nothing

    run(main())


def test_the_site_lists_the_models_of_all_hosts(tmp_path: Path) -> None:
    async def test(picker: Picker, first: FakeHost, second: FakeHost) -> None:
        await until(lambda: [host.trouble for host in picker.table] == ["", ""])
        answer = partial(picker.site.answer, "GET")
        status, _, text = answer("/v1/models")
        listed = msgspec.json.decode(text)["data"]
        assert (status, [each["id"] for each in listed]) == (200, ["a", "b"])
        assert listed[1]["llmux"] == {"awake": 1, "hosts": 2, "aliases": []}
        assert msgspec.json.decode(answer("/v1/models/a")[2])["id"] == "a"
        tags = msgspec.json.decode(answer("/api/tags")[2])["models"]
        assert [each["name"] for each in tags] == ["a", "b"]
        assert answer("/health")[0] == 200
        assert answer("/nowhere")[0] == 404
        await asyncio.sleep(0)
        series = answer("/metrics")[2].decode()
        assert f'llmux_pick_host_heard{{host="{first.endpoint}"}} 1.0' in series

    with_hosts(test, tmp_path)
