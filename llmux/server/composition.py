"""Composition: from a config to switchers, to a proxy, to an app that can be served."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sniffio
import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter

from llmux.api.control import Steered, control_routes
from llmux.api.page import page_routes
from llmux.api.public import answer_http_error, answer_llmux_error, public_routes, visitor_routes
from llmux.config import Config, default_config_path, load_config
from llmux.config.masking import MASKER
from llmux.downstream.asgi import LAST_STALL_S, ModelTraffic
from llmux.errors import ConfigError, LlmuxError
from llmux.hooks.shell import ShellHooks
from llmux.http.asgi_types import ASGIApp, Receive, Scope, Send
from llmux.observe import logs
from llmux.observe.feed import Feed
from llmux.observe.journal import Journal, Started
from llmux.observe.metrics import Metrics
from llmux.proxy.forward import ModelProxy
from llmux.proxy.gate import Fetch, metrics_of, watch_backends
from llmux.proxy.quiet import QuietWatch
from llmux.server.control_listener import ControlListener, Opened, control_socket
from llmux.server.guest import GuestBridge
from llmux.server.hypercorn_side import RULES, mend_hypercorn, use_rules
from llmux.server.memory import return_freed_memory
from llmux.server.statelock import LockHeld, state_lock
from llmux.switching.awake import AwakeRecord, Marks
from llmux.switching.model import Model
from llmux.switching.reload import Reloader
from llmux.switching.steps import Hooks
from llmux.switching.switchboard import Switchboard

if TYPE_CHECKING:
    from llmux.proxy.tracing import Tracing

EXIT_CONFIG = 2
"""Exit code for a bad config or a held lock."""

EXIT_SWITCHER_DIED = 3
"""Exit code when a switcher died."""

MAX_ORDER_BYTES = 65536
"""Largest body of a request for llmux's own paths: orders have a hundred bytes."""

Task = Callable[[], Awaitable[None]]

log = logs.get_logger(__name__)


def exit_at_once() -> None:
    """End a process that can switch no more, under a server that would go on without it."""
    sys.stderr.flush()
    os._exit(EXIT_SWITCHER_DIED)


class AnyPath(PathConverter):
    """A rest of a path that may also begin with a slash, as `/data/model` does."""

    regex = ".+?"
    part_isolating = False


@dataclass(frozen=True)
class Service:
    """What serves a config, wired together.

    Attributes:
        app: The ASGI app; its lifespan runs the switchers.
        board: The switchers.
        proxy: What carries model traffic, for lanes beside the app's own.
        traffic: The app's own lane.
        reloader: Has everybody use another config.
        feed: What happens, for those who watch.
        journal: What has happened, for `llmux replay`.
        tracing: What makes traces; None: there are none.
        control: The control API's own listener; None: it has none.
        on_switcher_death: Called when a switcher has died.
    """

    app: QuartTrio
    board: Switchboard
    proxy: ModelProxy
    traffic: ModelTraffic
    reloader: Reloader
    feed: Feed
    journal: Journal
    tracing: Tracing | None
    control: ControlListener | None
    on_switcher_death: Callable[[], object]

    def stop(self) -> None:
        """Let nobody in any more, and whoever watches go."""
        self.board.stop()
        self.proxy.stop()
        self.feed.stop()
        self.traffic.stop()
        if self.control is not None:
            self.control.stop()

    def gated(self) -> list[tuple[Model, Fetch]]:
        """The models whose backends are asked how many wait inside of them."""
        if not self.reloader.config.policy.gate:
            return []
        models = self.board.models.items()
        return [(model, metrics_of(self.proxy.upstreams[name].backend)) for name, model in models]


def build_app(config: Config) -> tuple[QuartTrio, Switchboard]:
    """Make an app and its switchers; nothing is started before the app is served.

    Where the config gives the control API a listener of its own, that is not opened.

    Raises:
        ConfigError: The policy cannot be loaded.
    """
    service = build_service(config)
    return service.app, service.board


def build_service(
    config: Config,
    *,
    hooks: Hooks | None = None,
    on_switcher_death: Callable[[], object] = exit_at_once,
    control: Opened | None = None,
) -> Service:
    """Wire everything together; nothing is started before the app is served.

    Args:
        config: What to serve.
        hooks: Runs hooks; by default the config's shell hooks.
        on_switcher_death: Called when a switcher has died; `/health` is 503 by then.
        control: Where the control API listens by itself.

    Raises:
        ConfigError: The policy cannot be loaded.
    """
    use_rules(config)
    MASKER.use(config.secrets)
    metrics, feed = Metrics(), Feed()
    journal = Journal(config.state_dir / "journal.jsonl" if config.journal else None)
    record = AwakeRecord(config.state_dir / "awake.json")
    shell = shell_hooks(config, metrics, record.mark, feed)
    tracing = tracing_of(config)
    entries = tracing.journal_beside(journal) if tracing else journal
    board = Switchboard(config, hooks or shell, metrics, entries, record=record, feed=feed)
    board.on_death = on_switcher_death
    proxy = ModelProxy(config, board, metrics, journal, feed=feed, tracing=tracing)
    RULES.bodies = proxy.bodies
    board.connect(proxy.upstreams.heard_since, proxy.upstreams.forget_idle)
    reloader = Reloader(config, board, feed)
    reloader.tell(lambda new: MASKER.use(new.secrets))
    reloader.tell(shell.apply, of_models=shell.use)
    reloader.tell(proxy.apply, of_models=proxy.use)
    reloader.tell(lambda new: journal.add(started(new)))
    if tracing:
        reloader.tell(tracing.apply)

    metrics.watch_site(
        is_healthy=lambda: board.is_healthy,
        queue_limit=lambda: reloader.config.limits.queued_per_model,
    )
    app = new_app()
    app.register_blueprint(public_routes(lambda: reloader.config, board, metrics))
    app.register_blueprint(visitor_routes(lambda: reloader.config, board))
    steered = Steered(board, feed, proxy.journeys, journal, shell, reloader)
    app.register_blueprint(control_routes(steered))
    app.register_blueprint(page_routes(lambda: reloader.config))
    traffic = ModelTraffic(
        app.asgi_app,
        proxy,
        nursery=lambda: app.nursery,
        stall_s=config.limits.client_stall_secs,
        is_apart=config.control is not None,
    )
    app.asgi_app = traffic  # type: ignore[assignment]

    service = Service(
        app=app,
        board=board,
        proxy=proxy,
        traffic=traffic,
        reloader=reloader,
        feed=feed,
        journal=journal,
        tracing=tracing,
        control=ControlListener(control, traffic) if control else None,
        on_switcher_death=on_switcher_death,
    )
    quiet = QuietWatch(proxy.journeys, board, lambda: reloader.config)
    beside: list[Task] = [partial(watch_backends, service.gated), traffic.watch_stalls, quiet.run]
    if service.control is not None:
        beside.append(service.control.run)
    add_lifespan(service, beside=beside)
    return service


def add_lifespan(service: Service, *, beside: Iterable[Task]) -> None:
    """Have the app run what goes on beside requests, for as long as it is served.

    Args:
        service: What is served.
        beside: More tasks.
    """
    app, board, config = service.app, service.board, service.reloader.config
    reload = service.reloader.run
    tasks: list[Task] = [service.journal.run, service.feed.run, board.run, reload, *beside]

    async def vital(task: Task) -> None:
        """Run what must not end unseen: its nursery would end all others, and llmux serve on."""
        try:
            await task()
        except Exception:
            log.exception("switcher_died" if task == board.run else "task_died")
            board.stop()
            service.on_switcher_death()

    @app.before_serving
    async def start() -> None:
        # In the lifespan's own nursery: Quart's background tasks may die unnoticed.
        service.journal.add(started(config))
        for task in tasks:
            app.nursery.start_soon(vital, task)

    @app.after_serving
    async def stop() -> None:
        try:
            service.stop()
            # `llmux serve` has done it by now.
            if service.reloader.config.on_shutdown == "sleep" and not board.has_ended:
                with trio.move_on_after(service.reloader.config.shutdown_grace_secs):
                    await board.wait_ended()
                board.end()
                await board.put_to_sleep()
            if service.control is not None:
                with trio.move_on_after(LAST_STALL_S):
                    await service.control.wait_ended()
            service.proxy.upstreams.close()
            if service.tracing:
                await service.tracing.close()
        finally:
            app.nursery.cancel_scope.cancel()


def started(config: Config) -> Callable[[float], Started]:
    """What the journal says of the start, which is now."""
    now = trio.current_time()
    options: dict[str, Any] = {}
    with suppress(TypeError, ValueError, RecursionError):  # YAML says more than JSON
        options = msgspec.json.decode(msgspec.json.encode(config.policy.options))
    return lambda offset_s: Started(
        at=now + offset_s,
        policy=config.policy.name,
        groups={model.name: model.group for model in config.models.values()},
        slots={m.name: m.max_in_flight for m in config.models.values() if m.max_in_flight},
        max_wait_s=config.policy.max_wait_secs,
        min_active_s=config.policy.min_active_secs,
        freezes=[m.name for m in config.models.values() if m.preserves_in_flight],
        options=options,
        drains=config.policy.drain_before_switch,
    )


def new_app() -> QuartTrio:
    """An app without routes, with llmux's settings in place of the framework's."""
    app = QuartTrio("llmux")
    app.config["RESPONSE_TIMEOUT"] = None  # the default cuts a response after 60 s, silently
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = math.inf  # None cancels `stop` of the lifespan
    app.config["MAX_CONTENT_LENGTH"] = MAX_ORDER_BYTES  # nobody counts what the framework reads
    app.url_map.merge_slashes = False  # model names may begin with one
    app.url_map.converters["path"] = AnyPath
    app.register_error_handler(LlmuxError, answer_llmux_error)
    app.register_error_handler(HTTPException, answer_http_error)
    return app


def tracing_of(config: Config) -> Tracing | None:
    """What makes the traces, if there are to be some; only then is OpenTelemetry imported."""
    if not config.tracing:
        return None
    from llmux.proxy.tracing import Tracing  # noqa: PLC0415 - it needs an extra, and time to import

    return Tracing(config)


def shell_hooks(
    config: Config, metrics: Metrics, marks: Marks, feed: Feed | None = None
) -> ShellHooks:
    """The config's hooks, with their logs under its `state_dir`."""
    return ShellHooks(
        config.models,
        directory=config.directory,
        log_dir=config.state_dir / "logs",
        metrics=metrics,
        marks=marks,
        secret_variables=config.secret_variables,
        feed=feed,
        shows_output=config.errors.hook_output == "clients",
    )


class ServedApp:
    """What `hypercorn llmux.app:app` serves.

    Importing it does nothing; when the server starts, it reads the default config. Under an
    asyncio server (Hypercorn's default worker), Trio runs as a guest of the server's loop.
    """

    def __init__(self) -> None:
        self._inner: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            assert self._inner is not None, "the server did not start the lifespan"
            await self._inner(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        logs.configure()
        mend_hypercorn()
        return_freed_memory()
        end_with_parent()
        try:
            config = load_config(default_config_path(os.environ))
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
    """End this process as soon as the one that has started it as a worker is gone.

    Hypercorn's parent binds the socket and its worker serves. If the parent alone is killed, the
    worker would serve on, unseen, with the port and the lock of `state_dir`: no other llmux could
    start. What it leaves awake is adopted by the next one, as after any kill.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # `-w 0`, or a server that is its own worker

    def wait() -> None:
        parent.join()  # by a pipe that breaks when it dies, whatever ended it
        log.critical("parent_died", hint="its worker ends, too")
        exit_at_once()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _for_this_loop(app: ASGIApp) -> ASGIApp:
    if sniffio.current_async_library() == "trio":
        return app
    log.info("trio_as_guest", hint="`hypercorn -k trio` (or `llmux`) is faster")
    return GuestBridge(app)


def print_mistake(error: Exception) -> None:
    """Print an error at start, without a traceback."""
    sys.stderr.write(f"{error}\n")


def find_config(path: Path | None) -> Config:
    """Load the config at `path`, else the default one; raises ConfigError."""
    return load_config(path or default_config_path(os.environ))
