"""Read what is in a certificate, and why clients would refuse it.

The ssl module only decodes a certificate that was verified in a handshake, so this makes one in
memory, with the certificate itself as the only trusted one.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module has no name for."""

INVALID_PURPOSE = 26
"""X509_V_ERR_INVALID_PURPOSE of OpenSSL."""

NOT_FOR_SERVERS = "it is not for servers: its extendedKeyUsage lacks serverAuth"


def facts_of(
    context: ssl.SSLContext, leaf: bytes, cert: Path, key: Path
) -> tuple[dict[str, Any], str]:
    """Return what a client reads in a certificate, and why it refuses it, if it does.

    Args:
        context: A server's, with the certificate.
        leaf: The certificate, in DER.
        cert: Its file.
        key: The file of its key.

    Returns:
        As `SSLSocket.getpeercert` does, empty if that cannot be told; the reason, empty if none.
    """
    client = _trusting(ssl.PROTOCOL_TLS_CLIENT, leaf)
    try:
        return _told(client, context, is_of_server=True), ""
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == INVALID_PURPOSE:
            return _of_a_client(leaf, cert, key), NOT_FOR_SERVERS
        return {}, error.verify_message
    except ssl.SSLError as error:
        return {}, (error.reason or str(error)).lower().replace("_", " ")


def _of_a_client(leaf: bytes, cert: Path, key: Path) -> dict[str, Any]:
    """Return what is in a certificate that only a client may use."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server = _trusting(ssl.PROTOCOL_TLS_SERVER, leaf)
    try:
        client.load_cert_chain(cert, key)
        server.load_cert_chain(cert, key)
        return _told(client, server, is_of_server=False)
    except OSError:  # it is for something else; SSLError is one
        return {}


def _trusting(protocol: int, leaf: bytes) -> ssl.SSLContext:
    """Return a context that wants this very certificate from the other side."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=leaf)
    return context


def _told(client: ssl.SSLContext, server: ssl.SSLContext, *, is_of_server: bool) -> dict[str, Any]:
    """Shake hands; return what one side reads in the other's certificate. Raises SSLError."""
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(here, there)
    serving = server.wrap_bio(there, here, server_side=True)
    for side in (asking, serving, asking, serving):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return dict((asking if is_of_server else serving).getpeercert() or {})
