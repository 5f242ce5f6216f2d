"""The pulse of a task that waits for an epoll: it shows that the task still takes what has come."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager


class Pulse:
    """Asks a task by a descriptor in its epoll, and notes that the task has found it there.

    Attributes:
        fileno: The descriptor while it beats, else -1.
    """

    def __init__(self) -> None:
        self.fileno = -1
        self._is_asked = False

    @contextmanager
    def beating(self, epoll: select.epoll) -> Iterator[None]:
        """Let the task that waits for this epoll be asked, as long as the context lasts."""
        self.fileno = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            epoll.register(self.fileno, select.EPOLLIN)
            yield
        finally:
            os.close(self.fileno)
            self.fileno, self._is_asked = -1, False

    def answer(self) -> None:
        """Note that the task has found the descriptor readable."""
        if self._is_asked:  # else an earlier owner of the number was meant
            self._is_asked = False
            os.eventfd_read(self.fileno)

    def look(self) -> bool:
        """Return whether the task has answered since the last look, and ask it again."""
        if self._is_asked:
            return False
        if self.fileno != -1:
            self._is_asked = True
            os.eventfd_write(self.fileno, 1)
        return True
