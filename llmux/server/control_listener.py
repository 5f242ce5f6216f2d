"""The control API's own listener: a port, or a Unix socket for the user that llmux runs as.

Hypercorn's classes for Trio serve it in the app's lifespan, so it is the same under `llmux`, under
`hypercorn -k trio`, and where Trio is a guest of asyncio. It still answers when clients hold all of
the main listener's connections.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.utils import repr_socket_addr

from llmux.api.listeners import PORT, SOCKET, mark_listener
from llmux.config import Config
from llmux.http.asgi_types import ASGIApp
from llmux.observe.logs import get_logger
from llmux.server.certificates import Certificates
from llmux.server.hypercorn_side import HypercornSide
from llmux.server.secure import serve_tls

MOST_CONNECTIONS = 64
"""Limit of concurrent connections; more are closed at once. An open page uses two."""

BACKLOG = 64

STALE_S = 1.0
"""Time limit for checking whether another program listens on an existing socket file."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """A listening socket.

    Attributes:
        sock: The socket.
        kind: Unix socket or TCP port.
        url: Its address for logs: `http://127.0.0.1:3001`, `unix:/run/llmux/control.sock`.
    """

    sock: socket.socket
    kind: Literal["socket", "port"]
    url: str


@contextmanager
def control_socket(config: Config) -> Iterator[Opened | None]:
    """Listen on `control` as long as the context lasts; yields None if the config has none.

    Raises:
        OSError: The address or the path cannot be used.
    """
    if config.control is None:
        yield None
    elif (path := config.control_socket) is not None:
        with _unix_socket(path) as sock, sock:
            yield Opened(sock, SOCKET, f"unix:{path}")
    else:
        host, port = config.control.host or "127.0.0.1", config.control.port or 0
        with _tcp_socket(host, port) as sock:
            where = repr_socket_addr(sock.family, sock.getsockname())
            scheme = "http" if config.tls is None else "https"
            yield Opened(sock, PORT, f"{scheme}://{where}")


def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        message = f"cannot listen on {host}:{port} (`control`): {error.strerror}"
        raise OSError(error.errno, message) from error
    return sock


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket; at the end, remove its file unless it has been replaced."""
    try:
        _remove_stale(path)
        sock = _bound(path)
    except OSError as error:
        message = f"cannot listen on {path} (`control.socket`): {error.strerror}"
        raise OSError(error.errno, message) from error
    mine = path.lstat()
    try:
        yield sock
    finally:
        sock.close()
        with suppress(OSError):
            found = path.lstat()
            if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                path.unlink()


def _bound(path: Path) -> socket.socket:
    """Bind and listen, with a file that only this user may access.

    bind(2) creates the file or fails: it follows no symbolic link at the end of the path, not even
    a broken one.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # not chmod afterwards: others could connect before that
    try:
        sock.bind(os.fspath(path))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket file on which no program listens any more, and no other file.

    Raises:
        OSError: The path is in use by something else.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a symbolic link")
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(STALE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:  # it has a listener, whose backlog is full
            pass
    raise OSError(errno.EADDRINUSE, "another program listens there")


class ControlListener:
    """Serves the control API on its own socket while `run` runs.

    Args:
        opened: The socket.
        app: llmux's app.
        certificates: For TLS on a port; a Unix socket needs none.
    """

    def __init__(self, opened: Opened, app: ASGIApp, certificates: Certificates) -> None:
        self._opened = opened
        self._certificates = certificates if opened.kind == PORT else None
        self._side = HypercornSide(mark_listener(app, opened.kind), _settings())
        self._accepting = trio.CancelScope()
        self._ended = trio.Event()
        self._count = 0

    async def run(self) -> None:
        """Serve until `stop`, and then until the current requests have ended."""
        log.info("control_listening", where=self._opened.url)
        # The socket is closed with the listener: otherwise new connections would hang unaccepted.
        sock = trio.socket.from_stdlib_socket(self._opened.sock)
        try:
            async with trio.open_nursery() as connections:
                async with trio.SocketListener(sock) as listener:
                    with self._accepting:
                        await trio.serve_listeners(
                            self._serve, [listener], handler_nursery=connections
                        )
                await self._side.stop()
        finally:
            self._ended.set()

    def stop(self) -> None:
        """Stop accepting connections; `run` then closes idle ones."""
        self._accepting.cancel()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._count >= MOST_CONNECTIONS:
            log.warning("control_connections", limit=MOST_CONNECTIONS)
            await trio.aclose_forcefully(stream)
            return
        self._count += 1
        try:
            if self._certificates:
                await serve_tls(self._side.serve, stream, self._certificates.context)
            else:
                await self._side.serve(stream, b"")
        except Exception:
            log.exception("connection_failed")
        finally:
            self._count -= 1
            await trio.aclose_forcefully(stream)


def _settings() -> ServerConfig:
    """Return Hypercorn's settings, as for the main listener."""
    settings = ServerConfig()
    settings.keep_alive_timeout = 75
    settings.h11_max_incomplete_size = 64 * 1024
    return settings
