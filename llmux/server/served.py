"""The app that an ASGI server imports: `hypercorn llmux.app:app`."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

import sniffio

from llmux.config import default_config_path, load_config
from llmux.errors import ConfigError
from llmux.http.asgi_types import ASGIApp, Receive, Scope, Send
from llmux.observe import logs
from llmux.server.composition import build_service
from llmux.server.control_listener import control_socket
from llmux.server.exits import EXIT_CONFIG, exit_at_once, print_mistake
from llmux.server.guest import GuestBridge
from llmux.server.hypercorn_side import patch_hypercorn
from llmux.server.memory import return_freed_memory
from llmux.server.statelock import LockHeld, state_lock

ABOUT_TLS = "Hypercorn serves TLS by its own options: --certfile and --keyfile"

log = logs.get_logger(__name__)


class ServedApp:
    """The app of `hypercorn llmux.app:app`.

    Importing it does nothing; it reads the default config when the server starts it. Under an
    asyncio server (Hypercorn's default worker), Trio runs as a guest of the server's loop.
    """

    def __init__(self) -> None:
        self._inner: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            assert self._inner is not None, "the server did not start the lifespan"
            await self._inner(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        logs.configure()
        patch_hypercorn()
        return_freed_memory()
        end_with_parent()
        try:
            config = load_config(default_config_path(os.environ))
            if config.tls is not None:
                log.warning("tls_unused", hint=ABOUT_TLS)
            with state_lock(config.state_dir, config.path), control_socket(config) as control:
                self._inner = _for_this_loop(build_service(config, control=control).app)
                await self._inner(scope, receive, send)
        except (ConfigError, LockHeld, OSError) as error:
            # Raised, this would make Hypercorn serve on without a lifespan, and reported as
            # `lifespan.startup.failed` it would print a traceback.
            print_mistake(error)
            sys.stderr.flush()
            os._exit(EXIT_CONFIG)


def end_with_parent() -> None:
    """End this worker process as soon as its parent is gone.

    Hypercorn's parent binds the socket and its worker serves. If only the parent is killed, the
    worker would continue unsupervised, and keep the port and the lock of `state_dir`, so that no
    other llmux could start. The next llmux adopts models left awake, as after any kill.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # `-w 0`, or a server that is its own worker

    def wait() -> None:
        parent.join()  # waits on a pipe that breaks however the parent ends
        log.critical("parent_died", hint="its worker ends, too")
        exit_at_once()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _for_this_loop(app: ASGIApp) -> ASGIApp:
    if sniffio.current_async_library() == "trio":
        return app
    log.info("trio_as_guest", hint="`hypercorn -k trio` (or `llmux`) is faster")
    return GuestBridge(app)
