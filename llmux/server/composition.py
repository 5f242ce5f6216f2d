"""Composition: wire a config into switchers, a proxy and an app. Nothing is started here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from quart import Blueprint
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter

from llmux.api.control import Controlled, control_routes
from llmux.api.forecasts import Forecasts
from llmux.api.health import health_routes
from llmux.api.llama_swap import llama_swap_routes
from llmux.api.memory_status import MemoryFeed
from llmux.api.outlook import Outlooks
from llmux.api.page import page_routes
from llmux.api.public import answer_http_error, answer_llmux_error, public_routes, visitor_routes
from llmux.config import Config
from llmux.config.masking import MASKER
from llmux.downstream.asgi import ModelTraffic
from llmux.errors import LlmuxError
from llmux.hooks.measuring import Measurer
from llmux.hooks.shell import ShellHooks
from llmux.observe import needs_seen
from llmux.observe.clock import WallClock
from llmux.observe.events import Events
from llmux.observe.feed import Feed
from llmux.observe.gpus import Gpus, NvidiaSmi, nvidia_smi
from llmux.observe.journal import FILE_NAME, Journal
from llmux.observe.listeners import observed
from llmux.observe.metrics import Metrics
from llmux.observe.needs_seen import SeenNeeds
from llmux.observe.recall import recall
from llmux.proxy.access_log import AccessLog
from llmux.proxy.forward import ModelProxy
from llmux.proxy.gate import Fetch, metrics_of, watch_backends
from llmux.proxy.quiet import QuietWatch
from llmux.server.certificates import Certificates
from llmux.server.control_listener import ControlListener, Opened
from llmux.server.exits import exit_at_once
from llmux.server.hypercorn_side import RULES, use_rules
from llmux.server.lifecycle import Lifecycle, Task
from llmux.server.ports import PortBook
from llmux.server.settings_record import started, stopped
from llmux.server.systemd import Watchdog, beat_s
from llmux.switching.awake import AwakeRecord, Marks
from llmux.switching.hooks import Hooks
from llmux.switching.measuring import MemoryWatch
from llmux.switching.model import Model
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard

if TYPE_CHECKING:
    from llmux.proxy.tracing import Tracing

MAX_ORDER_BYTES = 65536
"""Largest body of a request for llmux's own paths: orders have a hundred bytes."""


class AnyPath(PathConverter):
    """Matches the rest of a path, which may begin with a slash, as in `/data/model`."""

    regex = ".+?"
    part_isolating = False


@dataclass(frozen=True)
class Service:
    """The parts that serve a config, wired together.

    Attributes:
        app: The ASGI app; its lifespan runs the switchers.
        board: The switchers.
        proxy: Carries model traffic, for lanes beside the app's own.
        traffic: The app's own lane.
        reloader: Puts another config into use.
        metrics: Every series, for `GET /metrics`.
        feed: Recent events, for event streams and `GET /control/history`.
        journal: The record of requests and switches for `llmux replay`.
        lifecycle: Starts the background tasks, and ends them in order.
        certificates: The certificate in use, for listeners.
        watchdog: Tells systemd that all goes on.
    """

    app: QuartTrio
    board: Switchboard
    proxy: ModelProxy
    traffic: ModelTraffic
    reloader: Reloader
    metrics: Metrics
    feed: Feed
    journal: Journal
    lifecycle: Lifecycle
    certificates: Certificates
    watchdog: Watchdog


def build_app(config: Config) -> tuple[QuartTrio, Switchboard]:
    """Make an app and its switchers; nothing is started before the app is served.

    The control API's own listener, if the config has one, is not opened.

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
        control: The socket of the control API's own listener, if any.

    Raises:
        ConfigError: The policy cannot be loaded, or there is no port for a model.
    """
    use_rules(config)
    MASKER.use(config.secrets)
    ports = PortBook(config.state_dir)
    config = ports.assign(config)
    clock = WallClock()
    metrics, feed = metrics_of_models(config), Feed(clock)
    journal = Journal(config.state_dir / FILE_NAME if config.journal else None, clock)
    record = AwakeRecord(config.state_dir / "awake.json")
    events = observed(metrics, journal, feed)
    tracing = tracing_of(config, events)
    shell = shell_hooks(config, events, record.mark)
    seen = SeenNeeds(config.state_dir / needs_seen.FILE_NAME, config)
    seen.load()
    board = Switchboard(config, hooks or shell, events, record=record, measured=seen.under)
    watch_models(board, metrics, feed)
    gpus = watched_gpus(config, metrics, smi := nvidia_smi())
    proxy = ModelProxy(config, board, events, feed=feed, tracing=tracing)
    access_log = AccessLog(config, events)
    RULES.bodies = proxy.bodies
    forecasts = Forecasts(board)
    board.connect(proxy.upstreams.heard_since, proxy.upstreams.forget_idle, forecasts.ask)
    reloader = Reloader(config, board, events, complete=ports.assign)
    measurer = Measurer(shell, smi, lambda: reloader.config)
    memory = memory_watch(
        measurer,
        seen,
        board,
        events,
        lambda: journal.add(started(reloader.config, feed.boot, board)),
    )
    tell_of_reloads(reloader, metrics, ports, shell, proxy)
    reloader.tell(access_log.apply)
    certificates = certificates_of(config, reloader, metrics)
    reloader.tell(lambda new: journal.add(started(new, feed.boot, board)))
    if tracing:
        reloader.tell(tracing.apply)

    metrics.watch_site(
        is_healthy=lambda: board.is_healthy,
        is_cordoned=lambda: board.is_cordoned,
        queue_limit=lambda: reloader.config.limits.queued_per_model,
    )
    outlooks = Outlooks(board, feed, forecasts)
    outlooks.watch(events)
    metrics.watch_outlook(outlooks.gauges)
    controlled = Controlled(
        board, feed, proxy.journeys, journal, shell, reloader, gpus, forecasts, outlooks
    )
    app = new_app(
        public_routes(lambda: reloader.config, board, metrics),
        health_routes(lambda: reloader.config, board),
        visitor_routes(lambda: reloader.config, board),
        control_routes(controlled),
        llama_swap_routes(controlled),
        page_routes(lambda: reloader.config),
    )
    traffic = ModelTraffic(
        app.asgi_app,
        proxy,
        access_log,
        nursery=lambda: app.nursery,
        stall_s=config.limits.client_stall_secs,
        is_apart=config.control is not None,
    )
    app.asgi_app = traffic  # type: ignore[assignment]

    quiet = QuietWatch(proxy.journeys, board, lambda: reloader.config)
    watchdog = Watchdog(beat_s(os.environ, os.getpid()))
    watchdog.watch(board.standing_still)
    listener = ControlListener(control, traffic, certificates) if control else None
    tasks: list[Task] = [
        journal.run,
        feed.run,
        reloader.run,
        traffic.watch_stalls,
        quiet.run,
        gpus.run,
        forecasts.run,
        outlooks.run,
        memory.run,
        watchdog.run,
    ]
    if journal.is_kept:
        groups = {model.name: model.group for model in config.models.values()}
        tasks.append(partial(feed.recall, partial(recall, journal, feed.started_at, groups)))
    tasks.append(partial(watch_backends, lambda: gated(reloader.config, board, proxy)))
    if listener is not None:
        tasks.append(listener.run)
    lifecycle = Lifecycle(
        lambda: reloader.config,
        board,
        proxy,
        feed,
        traffic,
        control=listener,
        tracing=tracing,
        tasks=tasks,
        on_death=on_switcher_death,
    )
    live_with(
        app,
        lifecycle,
        ports,
        note_start=lambda: journal.add(started(config, feed.boot, board)),
        note_stop=lambda: journal.add(stopped()),
    )
    return Service(
        app,
        board,
        proxy,
        traffic,
        reloader,
        metrics,
        feed,
        journal,
        lifecycle,
        certificates,
        watchdog,
    )


def watched_gpus(config: Config, metrics: Metrics, smi: NvidiaSmi | None) -> Gpus:
    """Return what shows the GPUs, in the metrics, too, if there are any to watch."""
    gpus = Gpus(smi if config.watch_gpus else None)
    if gpus.are_watched:
        metrics.watch_gpus(gpus.look)
    return gpus


def tell_of_reloads(
    reloader: Reloader, metrics: Metrics, ports: PortBook, shell: ShellHooks, proxy: ModelProxy
) -> None:
    """Let reloads reach the parts that keep something of each model."""
    reloader.tell(lambda new: MASKER.use(new.secrets))
    reloader.tell(of_models=metrics.use)
    reloader.tell(of_models=ports.use)
    reloader.tell(shell.apply, of_models=shell.use)
    reloader.tell(proxy.apply, of_models=proxy.use)


def memory_watch(
    measurer: Measurer,
    seen: SeenNeeds,
    board: Switchboard,
    events: Events,
    note: Callable[[], object],
) -> MemoryWatch:
    """Return what measures models with `needs: auto` while they are awake.

    Args:
        measurer: Measures them.
        seen: Keeps what was found.
        board: Uses it.
        events: Tells of wakes.
        note: Called when needs have changed.
    """

    def changed(_model: str) -> None:
        board.remeasure()
        note()

    watch = MemoryWatch(measurer.measure, seen, lambda: board.to_measure, changed)
    events.phase_changed.listen(watch.note)
    return watch


def watch_models(board: Switchboard, metrics: Metrics, feed: Feed) -> None:
    """Show the counts of requests, and the memory that models share."""
    metrics.watch_counts(board.gauges)
    feed.watch_counts(board.in_flight_and_queued)
    memory = MemoryFeed(board, feed.clock)
    metrics.watch_memory(memory.now)
    feed.look_up(memory.news)


def certificates_of(config: Config, reloader: Reloader, metrics: Metrics) -> Certificates:
    """Return the certificate for TLS, if there is one; reloads renew it, and metrics watch it."""
    certificates = Certificates(config)
    reloader.tell(certificates.use)
    if certificates:
        metrics.watch_certificate(lambda: certificates.pair.ends_at)
    return certificates


def metrics_of_models(config: Config) -> Metrics:
    """Return metrics that show the counters of the config's models from zero on."""
    metrics = Metrics()
    for name, model in config.models.items():
        metrics.use(name, model)
    return metrics


def gated(config: Config, board: Switchboard, proxy: ModelProxy) -> list[tuple[Model, Fetch]]:
    """Return the models whose backend's queue is watched (`policy.gate`), each with a fetcher."""
    if not config.policy.gate:
        return []
    return [
        (model, metrics_of(proxy.upstreams[name].backend)) for name, model in board.models.items()
    ]


def live_with(
    app: QuartTrio,
    lifecycle: Lifecycle,
    ports: PortBook,
    *,
    note_start: Callable[[], object],
    note_stop: Callable[[], object],
) -> None:
    """Start the lifecycle when the app's lifespan begins, and stop it when that ends."""

    @app.before_serving
    async def start() -> None:
        note_start()
        lifecycle.start(app.nursery)

    @app.after_serving
    async def stop() -> None:
        try:
            await lifecycle.stop()
        finally:
            ports.close()
            note_stop()
            app.nursery.cancel_scope.cancel()


def new_app(*routes: Blueprint) -> QuartTrio:
    """Return an app with llmux's settings in place of the framework's."""
    app = QuartTrio("llmux")
    app.config["RESPONSE_TIMEOUT"] = None  # the default cuts a response after 60 s, silently
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = math.inf  # None cancels `stop` of the lifespan
    app.config["MAX_CONTENT_LENGTH"] = MAX_ORDER_BYTES  # these bodies count in no other limit
    app.url_map.merge_slashes = False  # model names may begin with one
    app.url_map.converters["path"] = AnyPath
    app.register_error_handler(LlmuxError, answer_llmux_error)
    app.register_error_handler(HTTPException, answer_http_error)
    for each in routes:
        app.register_blueprint(each)
    return app


def tracing_of(config: Config, events: Events) -> Tracing | None:
    """Return the tracing if it is configured; OpenTelemetry is imported only then."""
    if not config.tracing:
        return None
    from llmux.proxy.tracing import Tracing  # noqa: PLC0415 - it needs an extra, and time to import

    tracing = Tracing(config)
    events.request_ended.listen(tracing.request_ended)
    events.switch_ended.listen(tracing.switch_ended)
    return tracing


def shell_hooks(config: Config, events: Events, marks: Marks) -> ShellHooks:
    """Return the config's hooks, with their logs under its `state_dir`."""
    return ShellHooks(
        config.models,
        directory=config.directory,
        log_dir=config.state_dir / "logs",
        state_dir=config.state_dir,
        events=events,
        marks=marks,
        secret_variables=config.secret_variables,
        shows_output=config.errors.hook_output == "clients",
        resources=config.resources,
    )
