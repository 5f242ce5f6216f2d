"""The picker as a gRPC server: ext_proc, and the health service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from llmux.pick.exchange import Exchange
from llmux.pick.messages import (
    NOT_SERVING,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
    ProcessingResponse,
)

EXT_PROC, HEALTH = "envoy.service.ext_proc.v3.ExternalProcessor", "grpc.health.v1.Health"

READINESS = ("", "readiness", EXT_PROC)
LIVENESS = ("liveness",)
"""Services that gateways and Kubernetes ask for in health checks."""

GRACE_S = 2.0
"""Time for open streams when the picker stops."""

WATCH_S = 1.0
"""Interval at which `Watch` looks."""


class CannotListen(OSError):
    """The address cannot be bound."""


@asynccontextmanager
async def serving(
    address: str,
    exchange: Callable[[], Exchange],
    is_ready: Callable[[], bool],
    tls: tuple[bytes, bytes] | None = None,
) -> AsyncIterator[int]:
    """Serve until the context ends; yields the port.

    Args:
        address: `host:port`; port 0 lets the system pick one.
        exchange: Makes the state of one stream.
        is_ready: Whether picks are worth more than none.
        tls: A certificate with its chain, and its key, as PEM; None: without TLS.

    Raises:
        CannotListen: The address cannot be bound.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_ext_proc(exchange), _health(is_ready)))
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([(tls[1], tls[0])])
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        raise CannotListen(f"cannot listen on {address}: the address is in use, or not here") from (
            None
        )
    await server.start()
    try:
        yield int(port)
    finally:
        await asyncio.shield(server.stop(GRACE_S))


def _ext_proc(exchange: Callable[[], Exchange]) -> Any:
    async def process(messages: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        stream = exchange()
        async for message in messages:
            for answer in stream.answers(message):
                yield answer

    method = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=ProcessingRequest.FromString,
        response_serializer=ProcessingResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(EXT_PROC, {"Process": method})


def _health(is_ready: Callable[[], bool]) -> Any:
    def status() -> int:
        return SERVING if is_ready() else NOT_SERVING

    async def check(request: Any, context: Any) -> Any:
        if request.service in LIVENESS:
            return HealthCheckResponse(status=SERVING)
        if request.service not in READINESS:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=status())

    async def watch(_: Any, __: Any) -> AsyncIterator[Any]:
        told = None
        while True:
            if (now := status()) != told:
                told = now
                yield HealthCheckResponse(status=now)
            await asyncio.sleep(WATCH_S)

    coding = {
        "request_deserializer": HealthCheckRequest.FromString,
        "response_serializer": HealthCheckResponse.SerializeToString,
    }
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **coding),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **coding),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)
