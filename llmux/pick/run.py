"""The picker's process: its parts, started and ended in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing

from hypercorn.config import Sockets

from llmux.config.masking import MASKER
from llmux.errors import ConfigError
from llmux.observe.logs import get_logger
from llmux.pick.config import HostsTlsConfig, PickConfig
from llmux.pick.discovery import found_addresses
from llmux.pick.exchange import Exchange
from llmux.pick.metrics import Metrics
from llmux.pick.picking import Ask, Pick, pick
from llmux.pick.service import serving
from llmux.pick.subscribing import Listener
from llmux.pick.table import Address, Host, Table
from llmux.pick.web import Site, listen, serve_site

log = get_logger(__name__)


class Picker:
    """A running picker.

    Args:
        config: Its config.
        clock: Tells the time in seconds.
    """

    def __init__(self, config: PickConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self.table = Table()
        self.metrics = Metrics(self.table, clock)
        self.site = Site(self.table, self.metrics, clock)
        self._headers = tuple(name.lower() for name in config.model_headers)
        self._listening: dict[Address, asyncio.Task[None]] = {}

    def exchange(self) -> Exchange:
        """Return the state of one stream of ext_proc."""
        return Exchange(self._choose, self._headers, self.metrics.note)

    def is_ready(self) -> bool:
        """Return whether picks are worth more than Envoy's own choice: some host is heard."""
        now = self._clock()
        return any(host.is_fresh(now) for host in self.table)

    def _choose(self, ask: Ask) -> Pick:
        config = self._config
        picked = pick(
            self.table,
            ask,
            self._clock(),
            refuses_unknown=config.refuse_unknown,
            most=config.most_endpoints,
        )
        self.table.note_sent(picked.endpoints[0], picked.model)
        return picked

    async def follow(self) -> None:
        """Find the hosts and listen to each, for ever; raises ConfigError at the start."""
        config = self._config
        keys, tls = config.read_keys.texts, hosts_context(config.hosts_tls)
        listener = Listener(self.table, self._clock, keys, tls)
        try:
            async with asyncio.TaskGroup() as group, aclosing(found_addresses(config)) as found:
                async for addresses in found:
                    new, gone = self.table.keep(addresses)
                    self._tell(new, gone)
                    for host in gone:
                        self._listening.pop(host.address).cancel()
                    for host in new:
                        task = group.create_task(listener.listen(host))
                        self._listening[host.address] = task
        finally:
            await listener.aclose()

    def _tell(self, new: list[Host], gone: list[Host]) -> None:
        log.info(
            "hosts_found",
            hosts=sorted(self.table.hosts),
            new=[host.address.endpoint for host in new],
            gone=[host.address.endpoint for host in gone],
        )


def hosts_context(config: HostsTlsConfig | None) -> ssl.SSLContext | None:
    """Return whom to trust; None: hosts do not speak TLS. Raises ConfigError."""
    if config is None:
        return None
    try:
        return ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))
    except OSError as error:
        raise ConfigError([f"hosts_tls.ca: {config.ca}: {error.strerror or error}"]) from None


def _pair(config: PickConfig) -> tuple[bytes, bytes] | None:
    if config.tls is None:
        return None
    cert, key = config.tls.cert, config.tls.key
    try:
        made = cert.read_bytes(), key.read_bytes()
    except OSError as error:
        raise ConfigError([f"tls: {error.filename}: {error.strerror}"]) from None
    try:  # gRPC says of a pair that does not fit that the address cannot be used
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, _no_password)
    except (ssl.SSLError, ValueError) as error:
        what = "no certificate with its private key, as PEM, without a password"
        raise ConfigError([f"tls: {cert} and {key} are {what}: {error}"]) from None
    return made


def _no_password() -> str:
    raise ValueError("the key has a password")


async def run(config: PickConfig, *, on_serving: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: The config.
        on_serving: Told the addresses of gRPC and of the site (empty: none) once both answer.

    Raises:
        ConfigError: A file that the config names cannot be used.
        OSError: An address cannot be bound.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request to a host
    MASKER.use([*config.read_keys.texts, *config.envoy.api_keys.texts])
    picker = Picker(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        hosts_context(config.hosts_tls)
        sockets = None if config.web is None else listen(config.web)
        for each in sockets.insecure_sockets if sockets is not None else ():
            stack.callback(each.close)
        made = serving(config.listen, picker.exchange, picker.is_ready, _pair(config))
        port = await stack.enter_async_context(made)
        address = f"{config.listen.rpartition(':')[0]}:{port}"
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(picker.follow())
                if sockets is not None:
                    group.create_task(serve_site(picker.site, sockets, _waiting(stopped)))
                on_serving(address, _address(sockets))
                await stopped.wait()
                following.cancel()
        except* ConfigError as errors:
            mistakes = [line for error in _leaves(errors) for line in error.lines]
            raise ConfigError(mistakes) from None


def _leaves(errors: BaseExceptionGroup[ConfigError]) -> Iterator[ConfigError]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _waiting(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        await event.wait()

    return wait


def _address(sockets: Sockets | None) -> str:
    if sockets is None:
        return ""
    host, port = sockets.insecure_sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
