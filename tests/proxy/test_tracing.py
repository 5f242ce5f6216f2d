"""OpenTelemetry traces: the spans of a request on both lanes, and what a collector gets of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llmux.config import parse_config, shape
from llmux.errors import ConfigError
from llmux.proxy import tracing
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, read_request, running_lane
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01".encode()

Spans = list[ReadableSpan]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Takes all spans in place of a collector."""
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda: exporter)
    return exporter


def spans_of(exporter: InMemorySpanExporter) -> Spans:
    """All that ended, in the order in which they began."""
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def named(spans: Spans, name: str) -> ReadableSpan:
    (span,) = [span for span in spans if span.name == name]
    return span


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert parent.context is not None
    assert child.context is not None
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )


def is_within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    times = [outer.start_time, inner.start_time, inner.end_time, outer.end_time]
    return sorted(time or 0 for time in times) == times


def facts(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


async def ask(site: Site, model: str = "a", *headers: bytes) -> bytes:
    body = json.dumps({"model": model}).encode()
    lines = [
        b"POST /v1/chat/completions?key=SECRET HTTP/1.1",
        b"Host: x",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *headers,
        b"",
        body,
    ]
    return await site.exchange(b"\r\n".join(lines))


def header_of(request: bytes, name: bytes) -> list[bytes]:
    head = request.partition(b"\r\n\r\n")[0]
    fields = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    return [value for found, _, value in fields if found.lower() == name]


@pytest.mark.parametrize("lane", LANES)
async def test_a_request_that_waited_for_a_switch(
    tmp_path: Path, lane: str, exporter: InMemorySpanExporter
) -> None:
    settings: dict[str, Any] = {"models": ("a", "b"), "tracing": True}
    async with running_lane(lane, tmp_path, **settings) as site:
        await ask(site, "a")
        began_at = time.time_ns()
        answer = await ask(site, "b", b"traceparent: " + TRACEPARENT, b"tracestate: vendor=1")
    assert answer.endswith(b"ok")
    spans = [
        span
        for span in spans_of(exporter)
        if span.context and span.context.trace_id == int(TRACE, 16)
    ]
    assert [span.name for span in spans] == ["POST b", "wait", "switch", "forward"]
    request, wait, switch, forward = spans

    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert request.parent.span_id == int(PARENT, 16)
    assert is_child(wait, request)
    assert is_within(wait, request)
    assert is_child(switch, wait)
    assert is_within(switch, wait)
    assert is_child(forward, request)
    assert is_within(forward, request)
    assert forward.kind is SpanKind.CLIENT
    assert began_at <= (request.start_time or 0) <= (request.end_time or 0) <= time.time_ns()

    told = facts(request)
    assert told["http.request.method"] == "POST"
    assert told["url.path"] == "/v1/chat/completions"
    assert told["http.response.status_code"] == 200
    assert told["gen_ai.request.model"] == told["llmux.model"] == "b"
    assert told["llmux.outcome"] == "done"
    assert told["llmux.wait_ms"] > 0
    assert told["llmux.first_byte_ms"] >= told["llmux.wait_ms"]
    assert told["client.address"] == "127.0.0.1"
    assert not [value for span in spans for value in facts(span).values() if "SECRET" in str(value)]
    assert facts(switch)["llmux.switch.from"] == "a"
    assert facts(switch)["llmux.switch.to"] == "b"
    assert facts(switch)["llmux.switch.result"] == "success"
    port = site.backend.port
    assert facts(forward)["url.full"] == f"http://127.0.0.1:{port}/v1/chat/completions"
    assert facts(forward)["server.port"] == port
    assert request.resource.attributes["service.name"] == "llmux"

    # What the backend does is part of the span that forwarded the request to it.
    passed = site.backend.received[-1]
    assert forward.context is not None
    assert header_of(passed, b"traceparent") == [
        b"00-%b-%016x-01" % (TRACE.encode(), forward.context.span_id)
    ]
    assert header_of(passed, b"tracestate") == [b"vendor=1"]


@pytest.mark.parametrize("lane", LANES)
async def test_a_request_that_did_not_wait_begins_a_trace(
    tmp_path: Path, lane: str, exporter: InMemorySpanExporter
) -> None:
    async with running_lane(lane, tmp_path, tracing=True) as site:
        await ask(site)
        await ask(site)
    request, forward = spans_of(exporter)[-2:]
    assert [request.name, forward.name] == ["POST a", "forward"]
    assert request.parent is None
    assert request.context is not None
    assert header_of(site.backend.received[-1], b"traceparent")[0].split(b"-")[1] == (
        b"%032x" % request.context.trace_id
    )


@pytest.mark.parametrize("lane", LANES)
async def test_without_tracing_nothing_is_touched(tmp_path: Path, lane: str) -> None:
    async with running_lane(lane, tmp_path) as site:
        await ask(site, "a", b"traceparent: " + TRACEPARENT, b"tracestate: vendor=1")
        await ask(site, "a")
    first, second = site.backend.received
    assert header_of(first, b"traceparent") == [TRACEPARENT]
    assert header_of(first, b"tracestate") == [b"vendor=1"]
    assert not header_of(second, b"traceparent")


def test_without_tracing_nothing_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys, llmux.cli.serve\n"
        "from llmux.app import build_app\n"
        "from llmux.config import parse_config\n"
        "build_app(parse_config({'models': {'a': {'port': 1, 'wake': 'x', 'sleep': 'x',"
        f" 'alive': 'x'}}}}, 'state_dir': {str(tmp_path)!r}}}))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_not_sampled_is_passed_on_as_such(
    tmp_path: Path, lane: str, exporter: InMemorySpanExporter
) -> None:
    async with running_lane(lane, tmp_path, tracing=True) as site:
        await ask(site, "a", b"traceparent: " + TRACEPARENT[:-1] + b"0")
    assert not spans_of(exporter)
    (passed,) = header_of(site.backend.received[-1], b"traceparent")
    assert passed.startswith(b"00-" + TRACE.encode())
    assert passed.endswith(b"-00")


async def test_the_sdk_can_be_switched_off(
    tmp_path: Path, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with running_lane("fast", tmp_path, tracing=True) as site:
        await ask(site, "a")
        await ask(site, "a", b"traceparent: " + TRACEPARENT)
    assert not spans_of(exporter)
    assert [header_of(each, b"traceparent") for each in site.backend.received] == [
        [],
        [TRACEPARENT],
    ]


@pytest.mark.parametrize("lane", LANES)
async def test_requests_that_fail(
    tmp_path: Path, lane: str, exporter: InMemorySpanExporter
) -> None:
    hooks = FakeHooks(failing={("b", "wake"): -1})
    settings: dict[str, Any] = {"models": ("a", "b"), "tracing": True, "hooks": hooks}
    async with running_lane(lane, tmp_path, **settings) as site:
        await ask(site, "nobody")
        await ask(site, "b")
        site.backend.play = play(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", close=True)
        await ask(site, "a")
    spans = spans_of(exporter)
    unknown = named(spans, "POST")
    assert facts(unknown)["error.type"] == facts(unknown)["llmux.outcome"] == "model_not_found"
    assert facts(unknown)["http.response.status_code"] == 404
    assert unknown.status.status_code is StatusCode.UNSET  # the client's mistake

    failed = named(spans, "POST b")
    assert facts(failed)["error.type"] == "hook_failed"
    assert failed.status.status_code is StatusCode.ERROR
    switch = next(span for span in spans if span.name == "switch")
    assert is_child(switch, next(span for span in spans if is_child(span, failed)))
    assert facts(switch)["llmux.switch.result"] == "failure"
    assert switch.status.status_code is StatusCode.ERROR

    cut = named(spans, "POST a")
    assert facts(cut)["llmux.outcome"] == "cut"
    assert cut.status.status_code is StatusCode.ERROR
    forward = named(spans, "forward")
    assert is_child(forward, cut)
    assert facts(forward)["error.type"] == "BackendBroke"


async def test_a_refused_try_and_the_next_are_two_spans(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    """The backend is down when the request comes, and up once its model was woken again."""
    async with running_lane("fast", tmp_path, tracing=True, policy={"alive_failures": 1}) as site:
        await ask(site)
        proxy = site.service.proxy
        real = proxy.upstreams["a"].backend
        dead = type(real)("http://127.0.0.1:1")
        proxy.upstreams["a"].backend = dead
        site.service.board._hooks.awake.clear()  # type: ignore[attr-defined]
        site.service.board.connect(
            lambda *_: False,
            lambda _: setattr(proxy.upstreams["a"], "backend", real),
            lambda _model: None,
        )
        await ask(site)
    forwards = [span for span in spans_of(exporter) if span.name == "forward"]
    assert [facts(span).get("error.type") for span in forwards] == [None, "BackendRefused", None]


@pytest.mark.parametrize("lane", LANES)
async def test_other_methods_and_names_make_no_new_span_names(
    tmp_path: Path, lane: str, exporter: InMemorySpanExporter
) -> None:
    async with running_lane(lane, tmp_path, tracing=True) as site:
        await site.exchange(b"PROPFIND /x?model=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    request = spans_of(exporter)[0]
    assert request.name == "HTTP a"
    assert facts(request)["http.request.method"] == "_OTHER"


# ---- Export ----


def test_the_config_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"port": 1, "wake": "x", "sleep": "x", "alive": "x"}
    config = {"models": {"a": model}, "tracing": True}
    assert parse_config(config).tracing
    for missing in ("no_such_package.of.otel", "opentelemetry.no_such_exporter"):
        monkeypatch.setattr(shape, "TRACING_NEEDS", missing)
        with pytest.raises(
            ConfigError, match=r"tracing: needs OpenTelemetry: pip .*llmux-proxy\[otel\]"
        ):
            parse_config(config)
        assert not parse_config({**config, "tracing": False}).tracing


async def test_the_end_waits_for_no_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes connections and says nothing."""
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")
    async with running_lane("fast", tmp_path, tracing=True) as site:
        assert (await ask(site)).endswith(b"ok")
        began_at = trio.current_time()
    assert trio.current_time() - began_at < 3
    for listener in listeners:
        await listener.aclose()


class Collector:
    """What OTLP over HTTP asks of a collector."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.exports: list[ExportTraceServiceRequest] = []

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            while request := await read_request(stream):
                head, _, body = request.partition(b"\r\n\r\n")
                self.heads.append(head)
                self.exports.append(ExportTraceServiceRequest.FromString(body))
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n"
                    b"Content-Length: 0\r\n\r\n"
                )


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_collector_gets_what_a_process_has_to_tell(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector()
    async with trio.open_nursery() as nursery:
        await nursery.start(collector.serve)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=of-mine")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=my-llmux,deployment=blue")
        async with running_backends(tmp_path, "a", "b") as rack:
            async with running_llmux(rack.write_config(tracing=True), form) as llmux:
                async with llmux.client() as client:
                    for model in ("a", "b"):
                        answer = await client.post(
                            "/v1/chat/completions",
                            json=chat(model),
                            headers={"traceparent": TRACEPARENT.decode()},
                        )
                        assert answer.status_code == 200
        nursery.cancel_scope.cancel()
    head = collector.heads[0].lower()
    assert head.startswith(b"post /v1/traces ")
    assert b"\r\nauthorization: of-mine" in head
    resources = [each for export in collector.exports for each in export.resource_spans]
    said = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert (said["service.name"], said["deployment"]) == ("my-llmux", "blue")
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    names = sorted(span.name for span in spans)
    assert names == ["POST a", "POST b", "forward", "forward", "switch", "switch", "wait", "wait"]
    requests = [span for span in spans if span.name.startswith("POST")]
    assert {span.parent_span_id.hex() for span in requests} == {PARENT}


@pytest.mark.parametrize("lane", LANES)
async def test_a_backend_on_a_unix_socket(
    tmp_path: Path, exporter: InMemorySpanExporter, lane: str
) -> None:
    path = tmp_path / "x.sock"
    async with running_lane(lane, tmp_path, socket_path=path, tracing=True) as site:
        assert b"200" in await ask(site, "a")
    (forward,) = [span for span in spans_of(exporter) if span.name == "forward"]
    assert facts(forward)["url.full"] == "http://localhost/v1/chat/completions"
    assert facts(forward)["server.address"] == str(path)
    assert facts(forward)["network.transport"] == "unix"
    assert "server.port" not in facts(forward)
