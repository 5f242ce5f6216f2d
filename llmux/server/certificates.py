"""The certificate that llmux serves now: reloads exchange it for new connections."""

from __future__ import annotations

import ssl
import time

from llmux.config import Config, tls_remarks
from llmux.http.certificates import Pair
from llmux.http.served_certificate import FILE, write_served
from llmux.observe.logs import get_logger

HTTP1, HTTP2 = "http/1.1", "h2"
"""Names of protocols in ALPN (RFC 7301)."""

UTC = "%Y-%m-%dT%H:%M:%SZ"

log = get_logger(__name__)


class Certificates:
    """Holds the certificate in use, if llmux serves TLS.

    Args:
        config: What llmux starts with. Only a restart turns TLS on or off.
    """

    def __init__(self, config: Config) -> None:
        self._pair = None if config.tls is None else config.tls.pair
        self._state_dir = config.state_dir
        self._protocols = [HTTP2, HTTP1] if config.http2 else [HTTP1]
        if self._pair is not None:
            self._take(self._pair)

    def __bool__(self) -> bool:
        return self._pair is not None

    @property
    def scheme(self) -> str:
        """Scheme of URLs: https or http."""
        return "http" if self._pair is None else "https"

    @property
    def pair(self) -> Pair:
        """The certificate in use; there must be one."""
        assert self._pair is not None
        return self._pair

    @property
    def context(self) -> ssl.SSLContext:
        """What the next connection is made with."""
        return self.pair.context

    def use(self, config: Config) -> None:
        """Use the certificate of another config from the next connection on."""
        if self._pair is None or config.tls is None:
            return
        is_other = config.tls.pair.fingerprint != self._pair.fingerprint
        self._pair = config.tls.pair  # the same one, too: its chain may be another
        self._take(self._pair)
        if is_other:
            self.note()
        for remark in tls_remarks(config):
            log.warning("config_suspect", remark=remark)

    def note(self) -> None:
        """Log which certificate is served from now on."""
        pair = self.pair
        ends = time.strftime(UTC, time.gmtime(pair.ends_at)) if pair.has_end else None
        log.info("certificate", cert=str(pair.cert), names=list(pair.names), expires=ends)

    def _take(self, pair: Pair) -> None:
        pair.context.set_alpn_protocols(self._protocols)
        try:
            write_served(self._state_dir, pair.fingerprint)
        except OSError as error:
            hint = "once the certificate's file is renewed, `llmux reload` does not know this llmux"
            path = str(self._state_dir / FILE)
            log.error("certificate_not_written", path=path, error=str(error), hint=hint)
