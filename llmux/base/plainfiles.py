"""Open files safely: only regular ones, of bounded size, and where it matters only llmux's own.

There are two kinds. Files that a user names (a config, a file of keys) may be reached by a symbolic
link, but must not be pipes or devices, which could hang llmux or fill its memory. Files that llmux
writes in its `state_dir` must neither be links nor belong to other users: in a folder that others
may write to, they could make llmux write to files of their choice.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotOurs(OSError):
    """Something else is in the place of a file of llmux's own; the message says what to do."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}: move it away, or choose another state_dir")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        OSError: It cannot be read, is not a regular file, or is larger than `most_bytes`;
            `strerror` says which.
    """
    # Before it is opened: opening a pipe blocks, and opening some devices has effects.
    _check_regular(path, path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _check_regular(path, os.fstat(descriptor).st_mode)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes >> 20} MiB", str(path))
    return data


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"not a regular file but {_kind(mode)}", str(path))


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def open_own(path: Path, flags: int, *, in_own_folder: bool = False) -> int:
    """Open a file of llmux's own in a folder that others may write to; return the descriptor.

    The descriptor is not inheritable (PEP 446). A new file is for its owner alone. The owner of an
    existing file must be llmux's user, root, or the folder's owner, who could replace it anyway;
    Linux has the same rule for sticky folders (`fs.protected_regular`).

    Args:
        path: Path of the file.
        flags: Flags as for `os.open`; O_TRUNC takes effect only after these checks.
        in_own_folder: True if the folder is llmux's own, too, and must not be a link.

    Raises:
        NotOurs: Something else is there: a link, no regular file, or another user's file.
        OSError: It cannot be opened.
    """
    follow = os.O_NOFOLLOW if in_own_folder else 0
    folder = _open_checked(path.parent, None, os.O_RDONLY | os.O_DIRECTORY | follow)
    try:
        safe = (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = _open_checked(path, folder, safe)
        try:
            _check_own(path, os.fstat(descriptor), os.fstat(folder))
            os.set_blocking(descriptor, True)  # hooks inherit some of these
            if flags & os.O_TRUNC:
                os.ftruncate(descriptor, 0)
        except OSError:
            os.close(descriptor)
            raise
    finally:
        os.close(folder)
    return descriptor


def _open_checked(path: Path, folder: int | None, flags: int) -> int:
    try:
        return os.open(path if folder is None else path.name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if path.is_symlink() and flags & os.O_NOFOLLOW:
            raise NotOurs(path, "is a symbolic link, which llmux does not follow") from None
        if error.errno in {errno.ENXIO, errno.EISDIR}:  # a pipe nobody reads, a socket; a folder
            raise NotOurs(path, f"is {_kind(path.lstat().st_mode)}") from None
        error.filename = str(path)
        raise


def _check_own(path: Path, file: os.stat_result, folder: os.stat_result) -> None:
    if not stat.S_ISREG(file.st_mode):
        raise NotOurs(path, f"is {_kind(file.st_mode)}")
    if file.st_uid not in {os.geteuid(), 0, folder.st_uid}:
        raise NotOurs(path, f"belongs to another user (uid {file.st_uid})")


def read_own(path: Path, most_bytes: int) -> bytes:
    """Read a file of llmux's own; raises OSError or its subclass NotOurs."""
    descriptor = open_own(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes >> 20} MiB", str(path))
    return data


def unsafe_folder(path: Path) -> str | None:
    """Return why others can replace files in a folder; None if they cannot."""
    found = path.stat()
    if found.st_uid not in {os.geteuid(), 0}:
        return f"it belongs to another user (uid {found.st_uid})"
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return "everybody may write to it"
    return None
