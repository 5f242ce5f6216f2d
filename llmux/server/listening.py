"""The main listener: its sockets, and the settings of Hypercorn's connections."""

from __future__ import annotations

import errno
import logging
import sys

from hypercorn.config import Config as ServerConfig
from hypercorn.config import Sockets
from hypercorn.utils import repr_socket_addr

from llmux.config import Config
from llmux.observe import logs
from llmux.server.accepting import BatchListener

log = logs.get_logger(__name__)


def listen(config: ServerConfig) -> Sockets:
    """Bind and listen; raises OSError, with advice, if the address is not free."""
    try:
        sockets = config.create_sockets()
    except OSError as error:
        advice = "; `port` or -p chooses another" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"cannot listen on {config.bind[0]}: {error.strerror}{advice}") from error
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        sock.listen(config.backlog)
    return sockets


def listeners(sockets: Sockets, scheme: str = "http") -> list[BatchListener]:
    """Wrap the sockets as Trio listeners, and log where they listen."""
    for sock in sockets.insecure_sockets:
        where = repr_socket_addr(sock.family, sock.getsockname())
        log.info("listening", url=f"{scheme}://{where}")
    return [BatchListener(sock) for sock in sockets.insecure_sockets]


def server_config(host: str, port: int, llmux: Config) -> ServerConfig:
    """Return Hypercorn's settings, each with the reason why its default is not good enough."""
    config = ServerConfig()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = llmux.shutdown_grace_secs  # the default cuts streams after 3 s
    config.keep_alive_timeout = 75  # as nginx; 5 s make clients reconnect between questions
    config.keep_alive_max_requests = sys.maxsize  # nothing here needs fresh connections
    config.h11_max_incomplete_size = 64 * 1024  # long cookies and tokens
    config.backlog = 1024  # 100 are too few for a burst
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
