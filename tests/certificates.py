"""Certificates for the tests, made on the spot."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

DAY = timedelta(days=1)


@functools.cache
def authority() -> trustme.CA:
    """The CA of this process: to make one takes milliseconds."""
    return trustme.CA(organization_name="llmux tests")


def client_context(ca: trustme.CA | None = None) -> ssl.SSLContext:
    """A client that trusts the CA, and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    (ca or authority()).configure_trust(context)
    return context


def write_pair(
    folder: Path,
    names: Sequence[str] = ("127.0.0.1", "localhost"),
    *,
    ends_in: timedelta = 90 * DAY,
    lasts: timedelta = 90 * DAY,
    key_mode: int = 0o600,
) -> dict[str, str]:
    """Write `cert.pem`, with its chain, and `key.pem` into a folder; returns the config's `tls`."""
    ends = datetime.now(UTC) + ends_in
    made = authority().issue_cert(*names, not_before=ends - lasts, not_after=ends)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(key_mode)
    return {"cert": str(cert), "key": str(key)}
