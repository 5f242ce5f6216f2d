"""OpenTelemetry traces: one span per request, with children for its wait and its exchange.

    request (server) ─┬─ wait ── switch, for each switch of its group while it was in line
                      └─ forward (client): its id is the `traceparent` that the backend gets

One switch may serve many requests. Each trace gets its own span for it, clipped to the time that
its request waited.

This is the only file that imports OpenTelemetry, and it is imported only with `tracing: true`. The
standard `OTEL_*` variables set exporter, sampling and service name; a thread of OpenTelemetry's own
sends the spans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llmux import __version__
from llmux.base.names import shown
from llmux.config import Config
from llmux.http.socketpath import socket_path
from llmux.http.syntax import Headers
from llmux.observe.clock import WallClock
from llmux.observe.events import SwitchEnded
from llmux.observe.journal import Switch
from llmux.observe.listeners import switch_entry
from llmux.observe.summary import RequestSummary, milliseconds, path_of
from llmux.switching.admission import Serving

FLUSH_S = 2.0
"""Seconds that a shutdown waits for the last spans to be sent."""

SWITCHES_KEPT = 256
"""Limit for switches remembered for the requests that wait for them."""

W3C = TraceContextTextMapPropagator()
W3C_HEADERS = (b"traceparent", b"tracestate")

MAX_CARRIED_BYTES = 4096
"""Longer trace headers are dropped; W3C Trace Context, section 3.3.1.5, requires 512 at least."""

# HTTP methods allowed as span names, since clients could make up any number of others.
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"}
)


class HasStatus(Protocol):
    """The part of a backend's answer that a trace needs."""

    status: int


A = TypeVar("A", bound=HasStatus)


class Tracing:
    """Makes the spans of one app; starts the thread that sends them."""

    def __init__(self, config: Config) -> None:
        own = Resource({"service.name": "llmux", "service.version": __version__})
        from_environment = OTELResourceDetector().detect()
        self._provider = TracerProvider(
            resource=Resource.create(own.merge(from_environment).attributes),
            shutdown_on_exit=False,  # it would wait for as long as the exporter retries
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer("llmux", __version__)
        self.switches: deque[Switch] = deque(maxlen=SWITCHES_KEPT)
        self._under_way: dict[str, Trace] = {}  # by the request's id
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._groups = {model.name: model.group for model in config.models.values()}

    def switch_ended(self, event: SwitchEnded) -> None:
        """Remember a switch for the requests that waited for it."""
        self.switches.append(switch_entry(event)(0.0))  # in Trio's time

    def begin(
        self,
        id: str,  # noqa: A002
        method: bytes,
        target: bytes,
        headers: Headers,
        client: str | None,
    ) -> Trace:
        """Begin the trace of a request; `request_ended` ends it."""
        trace = self._under_way[id] = Trace(self, method, target, headers, client)
        return trace

    def request_ended(self, summary: RequestSummary) -> None:
        """End the request's trace."""
        if (trace := self._under_way.pop(summary.id, None)) is not None:
            trace.end(summary)

    def switches_during(self, model: str, started_at: float, ended_at: float) -> list[Switch]:
        """Return the switches of a model's group that overlap a time (Trio's clock, seconds)."""
        group = self._groups.get(model)
        return [
            switch
            for switch in self.switches
            if self._groups.get(switch.target) == group
            and switch.started < ended_at
            and switch.ended > started_at
        ]

    async def close(self) -> None:
        """Send the remaining spans, or give up after `FLUSH_S`: the collector may not answer."""
        with trio.move_on_after(FLUSH_S, shield=True):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


class Trace:
    """The spans of one request."""

    def __init__(
        self,
        tracing: Tracing,
        method: bytes,
        target: bytes,
        headers: Headers,
        client: str | None,
    ) -> None:
        self._tracing = tracing
        self._clock = WallClock()
        self._noted_s = 0.0  # seconds of its wait that have a span already
        self._serving: Serving | None = None
        self._model = ""
        name = method.decode("latin-1")
        self._method = name if name in METHODS else "_OTHER"
        attributes = {
            "http.request.method": self._method,
            "url.path": shown(_text(path_of(target))),
        }
        if client is not None:
            attributes["client.address"] = client
        self._span = tracing.tracer.start_span(
            self._name(),
            context=W3C.extract(_carrier(headers)),
            kind=SpanKind.SERVER,
            start_time=self._clock.unix_ns(trio.current_time()),
            attributes=attributes,
        )
        self._here = set_span_in_context(self._span)

    def named(self, asked_for: str, model: str, serving: Serving) -> None:
        """Note the model that the request is for.

        Args:
            asked_for: The client's name for it.
            model: Its configured name.
            serving: The request's stay at the model.
        """
        self._model = model
        self._serving = serving
        self._span.update_name(self._name())
        self._span.set_attribute("gen_ai.request.model", asked_for)
        self._span.set_attribute("llmux.model", model)

    @asynccontextmanager
    async def forward(
        self,
        exchange: Callable[[Headers], AbstractAsyncContextManager[A]],
        headers: Headers,
        *,
        base_url: str,
        target: bytes,
    ) -> AsyncIterator[A]:
        """Run an exchange with the backend in a span of its own.

        Args:
            exchange: Sends the request with the headers that it is called with.
            headers: The request's; the span's id replaces the client's trace headers.
            base_url: Of the backend.
            target: Path and query at the backend.
        """
        self._note_wait()
        url, address = _server(base_url)
        span = self._tracing.tracer.start_span(
            "forward",
            context=self._here,
            kind=SpanKind.CLIENT,
            start_time=self._clock.unix_ns(trio.current_time()),
            attributes={
                "http.request.method": self._method,
                "url.full": url + shown(_text(path_of(target))),
                "llmux.model": self._model,
                **address,
            },
        )
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        if carrier:
            kept = [field for field in headers if field[0].lower() not in W3C_HEADERS]
            headers = [*kept, *((name.encode(), value.encode()) for name, value in carrier.items())]
        try:
            async with exchange(headers) as answer:
                span.set_attribute("http.response.status_code", answer.status)
                if answer.status >= 400:
                    span.set_status(StatusCode.ERROR)
                    span.set_attribute("error.type", str(answer.status))
                yield answer
        except Exception as error:
            span.set_status(StatusCode.ERROR, shown(str(error)))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end(self._clock.unix_ns(trio.current_time()))

    def end(self, summary: RequestSummary) -> None:
        self._note_wait()
        span = self._span
        span.set_attributes(
            {
                "http.response.status_code": summary.status,
                "http.request.body.size": summary.bytes_in,
                "http.response.body.size": summary.bytes_out,
                "llmux.outcome": summary.outcome,
                "llmux.wait_ms": milliseconds(summary.wait_s),
            }
        )
        if summary.first_byte_s is not None:
            span.set_attribute("llmux.first_byte_ms", milliseconds(summary.first_byte_s))
        if summary.tokens_in is not None:
            span.set_attribute("gen_ai.usage.input_tokens", summary.tokens_in)
        if summary.tokens_out is not None:
            span.set_attribute("gen_ai.usage.output_tokens", summary.tokens_out)
        if summary.outcome not in {"done", "client_left"}:
            span.set_attribute("error.type", summary.outcome)
        if summary.status >= 500 or summary.outcome == "cut":
            span.set_status(StatusCode.ERROR)
        span.end(self._clock.unix_ns(trio.current_time()))

    def _note_wait(self) -> None:
        """Make a span for the wait since the last call, if the request was in line.

        A request waits more than once if its backend refuses the connection.
        """
        if self._serving is None or self._serving.waited_s <= self._noted_s:
            return
        ended_at = self._serving.left_line_at
        began_at = ended_at - (self._serving.waited_s - self._noted_s)
        self._noted_s = self._serving.waited_s
        wait = self._child("wait", self._here, began_at, {"llmux.model": self._model})
        inside = set_span_in_context(wait)
        for switch in self._tracing.switches_during(self._model, began_at, ended_at):
            span = self._child("switch", inside, max(began_at, switch.started), _facts(switch))
            if switch.result == "failure":
                span.set_status(StatusCode.ERROR)
            span.end(self._clock.unix_ns(min(ended_at, switch.ended)))
        wait.end(self._clock.unix_ns(ended_at))

    def _child(
        self, name: str, context: Context, began_at: float, facts: Mapping[str, str | float]
    ) -> Span:
        return self._tracing.tracer.start_span(
            name, context=context, start_time=self._clock.unix_ns(began_at), attributes=facts
        )

    def _name(self) -> str:
        method = "HTTP" if self._method == "_OTHER" else self._method
        return f"{method} {self._model}" if self._model else method


def _facts(switch: Switch) -> dict[str, str | float]:
    return {
        "llmux.switch.from": switch.source or "idle",
        "llmux.switch.to": switch.target,
        "llmux.switch.result": switch.result,
        "llmux.switch.reason": switch.reason,
        "llmux.switch.duration_ms": milliseconds(switch.ended - switch.started),
        "llmux.switch.drain_ms": milliseconds(switch.drain_s),
        "llmux.switch.hooks_ms": milliseconds(switch.hooks_s),
    }


def _carrier(headers: Headers) -> dict[str, list[str]]:
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if (lower := name.lower()) in W3C_HEADERS and len(value) <= MAX_CARRIED_BYTES:
            carrier.setdefault(lower.decode(), []).append(_text(value))
    return carrier


@lru_cache
def _server(base_url: str) -> tuple[str, dict[str, str | int]]:
    """Return the URL to show for a backend, and the attributes of its address.

    For a Unix socket, `server.address` is its path (OpenTelemetry's semantic conventions).
    """
    if (path := socket_path(base_url)) is not None:
        return "http://localhost", {"server.address": path, "network.transport": "unix"}
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return base_url, {"server.address": parts.hostname or "", "server.port": port}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
