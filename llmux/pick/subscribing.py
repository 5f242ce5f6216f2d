"""Listen to a host: read its event stream, and come back when it breaks."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import cycle

import httpx
import msgspec

from llmux.observe.logs import get_logger
from llmux.observe.schemas.outlook import Outlook
from llmux.pick.events import Events
from llmux.pick.table import Host, Table

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pauses between attempts; each failure doubles them."""

CONNECT_S = 3.0

SILENT_S = 6.0
"""A stream without an outlook for so long is given up: hosts send one each second."""

REST, LONGEST_REST_S = 10.0, 1.0
"""Pause after what a host has said, as a multiple of the time that it took to read it, and limit:
Envoy waits for a pick for a quarter of a second, however much a host says."""

log = get_logger(__name__)


class Unheard(Exception):
    """A host cannot be heard; the message says why."""


class Listener:
    """Listens to hosts.

    Args:
        table: Told of what they say.
        clock: The table's clock.
        keys: Read keys, of which the hosts accept one; may be empty.
        tls: Whom to trust, for hosts with https.
    """

    def __init__(
        self,
        table: Table,
        clock: Callable[[], float],
        keys: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._table = table
        self._clock = clock
        self._keys = keys or ("",)
        self._client = httpx.AsyncClient(
            verify=False if tls is None else tls,
            timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def listen(self, host: Host) -> None:
        """Listen to a host until cancelled."""
        pause_s, keys = FIRST_PAUSE_S, cycle(self._keys)
        key, told = next(keys), ""
        while True:
            try:
                await self._read(host, key)
                why = "its event stream has ended"
            except Unheard as error:
                why = str(error)
                key = next(keys)
            except Exception as error:  # whatever one host does, the others are heard
                why = f"{host.address.control}: {str(error) or type(error).__name__}"
            if not host.trouble:
                pause_s, told = FIRST_PAUSE_S, ""
            self._table.note_lost(host, why)
            if why != told:
                told = why
                log.warning("host_lost", host=host.address.endpoint, why=why)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _read(self, host: Host, key: str) -> None:
        """Read one event stream to its end; raises Unheard and httpx's errors."""
        address = host.address
        headers = {"Accept": "text/event-stream"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        extensions = {"sni_hostname": address.name} if address.name else {}
        url = f"{address.control}/control/events"
        stream = self._client.stream("GET", url, headers=headers, extensions=extensions)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(CONNECT_S + SILENT_S):
                    answer = await stack.enter_async_context(stream)
            except TimeoutError:
                raise Unheard(f"{url}: its answer does not begin") from None
            if answer.status_code != 200:
                raise Unheard(_refusal(answer.status_code, address.control, has_key=bool(key)))
            events, pieces = Events(), aiter(answer.aiter_raw())
            heard_at = self._clock()
            while (left_s := heard_at + SILENT_S - self._clock()) > 0:
                async with asyncio.timeout(left_s):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                began_at = time.thread_time()
                for data in events.feed(piece, b"outlook"):
                    heard_at = self._clock()
                    self._hear(host, data)
                took_s = time.thread_time() - began_at
                await asyncio.sleep(min(took_s * REST, LONGEST_REST_S))
            raise TimeoutError(f"no outlook for {SILENT_S:g} s")

    def _hear(self, host: Host, data: bytes) -> None:
        try:
            outlook = msgspec.json.decode(data, type=Outlook)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unheard(f"an event of another version of llmux: {error}") from None
        is_new = bool(host.trouble)
        self._table.note_heard(host, outlook, self._clock())
        if is_new:
            log.info("host_heard", host=host.address.endpoint, models=len(outlook.models))


def _refusal(status: int, url: str, *, has_key: bool) -> str:
    if status in {401, 403}:
        what = "refuses the key" if has_key else "wants a key"
        return f"{url} {what}: give one of its read_keys as read_keys here"
    return f"{url}/control/events answers HTTP {status}: is it llmux, and its control API?"
