"""Tell llmux's own commands which certificate the running llmux serves.

A renewed certificate is in its file before llmux has read it, so the file alone does not tell a
command whom it reaches. The fingerprint of the certificate in use is in `certificate.json` in
`state_dir`. It is not secret, but whoever writes it chooses who gets the control key: it is read
only where nobody but its owner can put it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from llmux.base.plainfiles import open_own, read_own

FILE = "certificate.json"

MOST_BYTES = 4096

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Served(msgspec.Struct):
    """The certificate in use.

    Attributes:
        sha256: Fingerprint of its DER form, in hex.
    """

    sha256: str


def fingerprint_of(certificate: bytes) -> str:
    """Return the SHA-256 fingerprint of a certificate in DER, in hex."""
    return hashlib.sha256(certificate).hexdigest()


def write_served(state_dir: Path, certificate: bytes) -> None:
    """Write which certificate is in use.

    Args:
        state_dir: Folder of the file; created if needed.
        certificate: In DER.

    Raises:
        OSError: It cannot be written.
    """
    path = state_dir / FILE
    new = path.with_suffix(".new")
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    with os.fdopen(open_own(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(msgspec.json.encode(Served(fingerprint_of(certificate))) + b"\n")
    new.replace(path)


def read_served(state_dir: Path) -> str | None:
    """Return the fingerprint of the certificate in use; None if no trustworthy file tells it."""
    folder = Path(os.path.realpath(state_dir))
    try:
        if not _is_guarded(folder):
            return None
        return msgspec.json.decode(read_own(folder / FILE, MOST_BYTES), type=Served).sha256
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def _is_guarded(folder: Path) -> bool:
    """Return whether only root, this user, or a user chosen by root can put files here.

    Root also steers services of other users. Their folder counts if no third user could have made
    it, or exchanged a folder above it.
    """
    found = folder.stat()
    if found.st_mode & OTHERS_WRITE:
        return False
    user = os.geteuid()
    if found.st_uid in {user, 0}:
        return True
    return user == 0 and all(
        above.st_uid in {0, found.st_uid} and not above.st_mode & OTHERS_WRITE
        for above in (parent.stat() for parent in folder.parents)
    )
