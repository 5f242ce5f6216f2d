"""What is said of certificates and keys that cannot be used, and of those that are doubtful."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from llmux.http.certificates import BadPair, load_pair
from tests.certificates import DAY, authority, write_pair

Spoil = Callable[[Path, Path], Any]


def a_folder(_cert: Path, key: Path) -> None:
    key.unlink()
    key.mkdir()


def swap(cert: Path, key: Path) -> None:
    one, other = cert.read_bytes(), key.read_bytes()
    cert.write_bytes(other)
    key.write_bytes(one)


def protect(_cert: Path, key: Path) -> None:
    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"top secret")
        )
    )


def protect_in_the_old_way(_cert: Path, key: Path) -> None:
    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"top secret")
        )
    )


def foreign(_cert: Path, key: Path) -> None:
    key.write_bytes(authority().issue_cert("other.example").private_key_pem.bytes())


def foreign_kind(_cert: Path, key: Path) -> None:
    other = authority().issue_cert("other.example", key_type=trustme.KeyType.RSA)
    key.write_bytes(other.private_key_pem.bytes())


def in_binary(cert: Path, _key: Path) -> None:
    cert.write_bytes(
        ssl.PEM_cert_to_DER_cert(
            cert.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
        )
    )


def key_in_binary(_cert: Path, key: Path) -> None:
    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(loaded.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def issuer_first(cert: Path, _key: Path) -> None:
    cert.write_bytes(authority().cert_pem.bytes() + cert.read_bytes())


def indent(file: Path) -> None:
    """As it is pasted into YAML."""
    file.write_bytes(b"".join(b"  " + line for line in file.read_bytes().splitlines(True)))


DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def cut_off(cert: Path, _key: Path) -> None:
    cert.write_bytes(cert.read_bytes()[:200])


BAD: dict[str, tuple[Spoil, str, str]] = {
    "no certificate": (lambda cert, key: cert.unlink(), "cert", "cert.pem' cannot be read: No such file"),
    "no key": (lambda cert, key: key.unlink(), "key", "key.pem' cannot be read: No such file"),
    "a folder": (a_folder, "key", "cannot be read: Is a directory"),
    "empty": (lambda cert, key: key.write_bytes(b"\n"), "key", "is empty"),
    "text": (lambda cert, key: cert.write_bytes(b"hello"), "cert", "is not PEM"),
    "swapped": (swap, "cert", "swap them"),
    "no certificate in it": (lambda cert, key: cert.write_bytes(key.read_bytes()), "cert", "holds no certificate, but a "),
    "no key in it": (lambda cert, key: key.write_bytes(cert.read_bytes()), "key", "holds no private key, but a CERTIFICATE"),
    "password": (protect, "key", "is protected by a password, which llmux cannot ask for: openssl pkey -in "),
    "password, old": (protect_in_the_old_way, "key", "is protected by a password"),
    "another key": (foreign, "key", "is not the key of the certificate in '"),
    "a key of another kind": (foreign_kind, "key", "is not the key of the certificate in '"),
    "issuer first": (issuer_first, "key", "whose file begins with the server's own"),
    "DER": (in_binary, "cert", "openssl x509 -inform DER -in "),
    "DER key": (key_in_binary, "key", "openssl pkey -inform DER -in "),
    "cut off": (cut_off, "cert", "is incomplete: a -----BEGIN ...----- line lacks its -----END"),
    "key cut off": (lambda cert, key: key.write_bytes(key.read_bytes()[:99]), "key", "is incomplete"),
    "indented": (lambda cert, key: indent(cert), "cert", "line 1 is indented: in PEM, lines start at the left margin"),
    "key indented": (lambda cert, key: indent(key), "key", "line 1 is indented"),
    "on one line": (lambda cert, key: cert.write_bytes(cert.read_bytes().replace(b"\n", b"")), "cert", "line 1 must hold -----BEGIN ...----- and nothing else"),
    "key on one line": (lambda cert, key: key.write_bytes(key.read_bytes().replace(b"\n", b"")), "key", "line 1 must hold"),
    "byte order mark": (lambda cert, key: cert.write_bytes(b"\xef\xbb\xbf" + cert.read_bytes()), "cert", "byte order mark"),
    "no base64": (lambda cert, key: cert.write_bytes(cert.read_bytes().replace(b"\nMII", b"\n!II")), "cert", "the CERTIFICATE on line 1 is not valid base64"),
    "damaged": (lambda cert, key: cert.write_bytes(cert.read_bytes().replace(b"\nMII", b"\nAII")), "cert", "the CERTIFICATE on line 1 is damaged"),
    "a damaged chain": (lambda cert, key: cert.write_bytes(cert.read_bytes() + DAMAGED), "cert", "is damaged: copy it again"),
    "key damaged": (lambda cert, key: key.write_bytes(key.read_bytes().replace(b"\nM", b"\nA")), "key", " -noout` says more"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_pair_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    spoil, which, message = BAD[name]
    pair = write_pair(tmp_path)
    secret = Path(pair["key"]).read_bytes().splitlines()
    spoil(Path(pair["cert"]), Path(pair["key"]))
    with pytest.raises(BadPair) as caught:
        load_pair(Path(pair["cert"]), Path(pair["key"]))
    assert (caught.value.which, message in caught.value.message) == (which, True), caught.value
    assert "secret" not in caught.value.message
    assert "_ssl.c" not in caught.value.message
    lines = [line for line in secret if len(line) > 20 and b"-----" not in line]
    assert not any(line.decode() in caught.value.message for line in lines)


def test_a_key_that_may_not_be_read(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    with pytest.raises(BadPair, match=r"cannot be read: not a regular file but a device"):
        load_pair(Path(pair["cert"]), Path("/dev/null"))


def test_both_in_one_file(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, ["LLM.example.org", "*.example.net", "127.0.0.1"])
    both = tmp_path / "both.pem"
    both.write_bytes(Path(pair["key"]).read_bytes() + Path(pair["cert"]).read_bytes())
    both.chmod(0o600)
    loaded = load_pair(both, both)
    assert loaded.names == ("llm.example.org", "*.example.net")
    assert loaded.remarks() == []


@pytest.mark.parametrize(
    ("ends_in", "lasts", "said"),
    [
        (60 * DAY, 90 * DAY, ""),
        (15 * DAY, 90 * DAY, ""),
        (13 * DAY, 90 * DAY, "in 13 days"),
        (timedelta(hours=20), 90 * DAY, "in 20 h"),
        (2 * DAY, 6 * DAY, ""),  # a short one, half used up
        (DAY, 6 * DAY, "in 24 h"),
        (-DAY, 90 * DAY, "expired on "),
        (100 * DAY, 90 * DAY, "is not valid before "),
    ],
)
def test_times(tmp_path: Path, ends_in: timedelta, lasts: timedelta, said: str) -> None:
    pair = write_pair(tmp_path, ends_in=ends_in, lasts=lasts)
    remarks = load_pair(Path(pair["cert"]), Path(pair["key"])).remarks()
    assert [which for which, _ in remarks] == ["cert"] * bool(said)
    assert all(said in text for _, text in remarks)


def test_a_key_that_everybody_can_read(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, key_mode=0o644)
    ((which, text),) = load_pair(Path(pair["cert"]), Path(pair["key"])).remarks()
    assert (which, text) == (
        "key",
        f"every user of this machine can read it: chmod o-rwx {pair['key']}",
    )


@pytest.mark.parametrize("kind", ["rsa:2048", "ec"])
def test_a_certificate_that_openssl_makes(tmp_path: Path, kind: str) -> None:
    """As a user makes one: self-signed, and of either kind."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    new = (
        ["-newkey", "rsa:2048"]
        if kind != "ec"
        else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    )
    subprocess.run(
        ["openssl", "req", "-x509", *new, "-nodes", "-days", "30", "-subj", "/CN=llm",
         "-addext", "subjectAltName=DNS:llm.example.org", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    loaded = load_pair(cert, key)
    assert (loaded.names, loaded.trouble, loaded.has_end) == (("llm.example.org",), "", True)


@pytest.mark.parametrize(
    ("usage", "names"), [("clientAuth", ("llm.example.org",)), ("emailProtection", ())]
)
def test_a_certificate_that_is_not_for_servers_is_doubtful(
    tmp_path: Path, usage: str, names: tuple[str, ...]
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "30", "-subj", "/CN=llm", "-addext", f"extendedKeyUsage={usage}",
         "-addext", "subjectAltName=DNS:llm.example.org",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    loaded = load_pair(cert, key)
    assert (loaded.names, loaded.has_end) == (names, bool(names))
    assert loaded.remarks() == [
        (
            "cert",
            "clients may refuse it: it is not for servers: its extendedKeyUsage lacks serverAuth",
        )
    ]
