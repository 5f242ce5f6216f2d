"""Sockets that listen on this machine, and the processes that have them open, from /proc."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from llmux.http.socketpath import socket_path

PROC = Path("/proc")

LISTENS = "0A"
"""TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp shows it."""

ACCEPTS = 1 << 16
"""__SO_ACCEPTCON of include/uapi/linux/net.h, as the flags in /proc/net/unix show it."""


def is_served_by(url: str, pids: Collection[int]) -> bool:
    """Return whether one of some processes listens at a URL, as far as this user may see it."""
    path = socket_path(url)
    if path is None:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        wanted = {inode for _, number, inode in all_listening() if number == port}
    else:
        wanted = set(_unix_listening(_table("unix"), path))
    return bool(wanted) and any(wanted & sockets_of(pid) for pid in pids)


def sockets_of(pid: int) -> set[str]:
    """Return the inodes of a process's sockets; none if it is another user's."""
    found = set()
    with suppress(OSError):
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                kind, _, inode = str(descriptor.readlink()).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def all_listening() -> Iterator[tuple[str, int, str]]:
    """Yield address, port and inode of the TCP sockets that listen."""
    for name in ("tcp", "tcp6"):
        yield from listening(_table(name))


def _table(name: str) -> str:
    with suppress(OSError):
        return (PROC / "net" / name).read_text(errors="surrogateescape")
    return ""


def listening(table: str) -> Iterator[tuple[str, int, str]]:
    """Yield address, port and inode of the sockets that listen, of the text of /proc/net/tcp."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTENS:
            address, _, port = fields[1].partition(":")
            yield _address(address), int(port, 16), fields[9]


def _unix_listening(table: str, path: str) -> Iterator[str]:
    """Yield the inodes of the sockets that listen at a path, of the text of /proc/net/unix."""
    for line in table.splitlines()[1:]:
        fields = line.split(maxsplit=7)  # Num RefCount Protocol Flags Type St Inode Path
        if len(fields) == 8 and fields[7] == path and int(fields[3], 16) & ACCEPTS:
            yield fields[6]


def _address(text: str) -> str:
    """Read an address: words of 32 bits, each in the machine's byte order (little-endian)."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words))
