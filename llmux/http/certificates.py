"""A certificate and its private key, read from two files and checked before anything is served."""

from __future__ import annotations

import math
import ssl
import time
from pathlib import Path
from typing import Any, Literal

from llmux.base.plainfiles import read_regular
from llmux.http.certificate_facts import facts_of
from llmux.http.pem import flaw, labels

Which = Literal["cert", "key"]

MOST_FILE_BYTES = 1 << 20
"""A larger file is no certificate: a chain of four has 8 KiB."""

ALL_ARE_READ = 0o004
"""The permission bit that opens a file to every user."""

DAY_S = 24 * 3600.0

SOON_S, SOON_SHARE = 14 * DAY_S, 0.2
"""A certificate ends soon with less than either left: certificates of 90 days are usually renewed
30 days before their end, those of 6 days after half their time."""


class BadPair(Exception):
    """A certificate or key that cannot be used.

    Attributes:
        which: The file that the message is about.
        message: What is wrong, and what would be right.
    """

    def __init__(self, which: Which, message: str) -> None:
        super().__init__(message)
        self.which = which
        self.message = message


class Pair:
    """A certificate with its key.

    Attributes:
        cert: Path of the certificate, with the rest of its chain behind it.
        key: Path of its private key.
        context: What connections are made with.
        fingerprint: Tells one certificate from another.
        names: Host names of the certificate, in lower case; may begin with `*.`.
        begins_at: Unix time from which it is valid; 0 if unknown.
        ends_at: Unix time until which it is valid; infinite if unknown.
        is_open: True if every user of this machine can read the key.
        trouble: Why clients may refuse the certificate, its time aside; empty if unknown.
    """

    def __init__(
        self,
        *,
        cert: Path,
        key: Path,
        context: ssl.SSLContext,
        fingerprint: bytes,
        names: tuple[str, ...],
        begins_at: float,
        ends_at: float,
        is_open: bool,
        trouble: str,
    ) -> None:
        self.cert = cert
        self.key = key
        self.context = context
        self.fingerprint = fingerprint
        self.names = names
        self.begins_at = begins_at
        self.ends_at = ends_at
        self.is_open = is_open
        self.trouble = trouble

    def __repr__(self) -> str:
        return f"<Pair {self.cert} {', '.join(self.names)}>"

    @property
    def has_end(self) -> bool:
        """True if it is known when it expires."""
        return math.isfinite(self.ends_at)

    def remarks(self, now: float | None = None) -> list[tuple[Which, str]]:
        """Return what to warn of.

        Args:
            now: Unix time; None for the present.
        """
        now = time.time() if now is None else now
        found: list[tuple[Which, str]] = []
        left_s = self.ends_at - now
        if left_s <= 0:
            found.append(("cert", f"expired on {day(self.ends_at)}: clients refuse it"))
        elif self.begins_at > now:
            found.append(("cert", f"is not valid before {day(self.begins_at)}: clients refuse it"))
        elif left_s < min(SOON_S, SOON_SHARE * (self.ends_at - self.begins_at)):
            days = f"{left_s / DAY_S:.0f} days" if left_s >= 2 * DAY_S else f"{left_s / 3600:.0f} h"
            found.append(("cert", f"expires on {day(self.ends_at)}, in {days}"))
        if self.trouble:
            found.append(("cert", f"clients may refuse it: {self.trouble}"))
        if self.is_open:
            mode = "every user of this machine can read it"
            found.append(("key", f"{mode}: chmod o-rwx {self.key}"))
        return found


def load_pair(cert: Path, key: Path) -> Pair:
    """Read and check a certificate and its key.

    Args:
        cert: Path of a PEM file: the certificate, then the rest of its chain.
        key: Path of a PEM file with the private key; may be the same file.

    Raises:
        BadPair: They cannot be used.
    """
    chain, secret = _read(cert, "cert"), _read(key, "key")
    _check_kinds(chain, secret)
    try:
        context = _context(cert, key)
    except ssl.SSLError as error:
        raise _worded(error, cert, key, chain, secret) from None
    leaf = _der_of_first(chain)
    facts, trouble = facts_of(context, leaf, cert, key)
    return Pair(
        cert=cert,
        key=key,
        context=context,
        fingerprint=leaf,
        names=tuple(
            value.lower() for kind, value in facts.get("subjectAltName", ()) if kind == "DNS"
        ),
        begins_at=_time(facts.get("notBefore"), 0.0),
        ends_at=_time(facts.get("notAfter"), math.inf),
        is_open=bool(key.stat().st_mode & ALL_ARE_READ),
        trouble=trouble,
    )


# ---- The files ----


def _read(path: Path, which: Which) -> str:
    try:
        data = read_regular(path, MOST_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise BadPair(which, f"the file {str(path)!r} cannot be read: {reason}") from None
    text = data.decode("latin-1")
    if "-----BEGIN " not in text:
        command = "x509 -inform DER" if which == "cert" else "pkey -inform DER"
        what = "is empty" if not data.strip() else "is not PEM"
        if data.startswith(b"\x30"):
            what = "is binary (DER or PKCS #12)"
            what += f", and PEM is needed: openssl {command} -in {path} (or openssl pkcs12)"
        raise BadPair(which, f"the file {str(path)!r} {what}")
    return text


CERTIFICATES = ("CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE")

KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY")


def _check_kinds(chain: str, secret: str) -> None:
    """Check what the two files hold; raises BadPair."""
    of_cert, of_key = labels(chain), labels(secret)
    has_cert = any(label in CERTIFICATES for label in of_cert)
    has_key = any(label in KEYS for label in of_key)
    if has_cert and has_key:
        return
    if any(label in KEYS for label in of_cert) and any(label in CERTIFICATES for label in of_key):
        raise BadPair("cert", "this is the private key, and 'key' the certificate: swap them")
    if not has_cert:
        raise BadPair("cert", flaw(chain) or f"holds no certificate, but {_listed(of_cert)}")
    raise BadPair("key", flaw(secret) or f"holds no private key, but {_listed(of_key)}")


def _listed(found: list[str]) -> str:
    return ", ".join(f"a {label}" for label in dict.fromkeys(found)) or "broken PEM"


def read_leaf(cert: Path) -> bytes:
    """Return the first certificate of a PEM file, in DER; raises BadPair."""
    return _der_of_first(_read(cert, "cert"))


def _der_of_first(chain: str) -> bytes:
    """Return the first certificate of a PEM file: the others are its issuers'. Raises BadPair."""
    start = chain.find("-----BEGIN CERTIFICATE-----")
    end = "-----END CERTIFICATE-----"
    if start < 0 or chain.find(end, start) < 0:
        raise BadPair("cert", "its first block is no complete CERTIFICATE")
    try:
        return ssl.PEM_cert_to_DER_cert(chain[start : chain.find(end, start) + len(end)])
    except ValueError:
        raise BadPair("cert", "its first CERTIFICATE is not valid base64") from None


# ---- OpenSSL ----


class _Encrypted(Exception):
    """The key asks for a password."""


def _ask() -> str:
    raise _Encrypted


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(cert, key, _ask)
    except _Encrypted:
        advice = f"openssl pkey -in {key} -out plain.pem"
        message = f"is protected by a password, which llmux cannot ask for: {advice}"
        raise BadPair("key", message) from None
    except OSError as error:
        if isinstance(error, ssl.SSLError):
            raise
        raise BadPair("key", f"cannot be read: {error.strerror}") from None
    return context


OF_ANOTHER_KEY = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's names for a key that does not fit; the last for one of another algorithm."""

OF_CERTIFICATE = ("CA_MD", "EE_KEY", "CA_KEY")
"""Beginnings of OpenSSL's names for certificates that are too weak."""


def _worded(error: ssl.SSLError, cert: Path, key: Path, chain: str, secret: str) -> BadPair:
    reason = error.reason or ""
    if reason in OF_ANOTHER_KEY:
        what = f"is not the key of the certificate in {str(cert)!r}"
        hint = "whose file begins with the server's own certificate, followed by its issuer's"
        return BadPair("key", f"{what}, {hint}")
    text = reason.lower().replace("_", " ")
    if reason.startswith(OF_CERTIFICATE):
        return BadPair("cert", f"is too weak for OpenSSL: {text}")
    if found := flaw(chain):
        return BadPair("cert", found)
    advice = f"`openssl pkey -in {key} -noout` says more"
    return BadPair("key", flaw(secret) or f"OpenSSL cannot use it ({text or 'damaged'}): {advice}")


def _time(text: Any, otherwise: float) -> float:
    return float(ssl.cert_time_to_seconds(text)) if isinstance(text, str) else otherwise


def day(at: float) -> str:
    """Format a Unix time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
