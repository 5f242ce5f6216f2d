"""Find where the llmux that serves a config really listens: `-p` and `-H` are not in the file."""

from __future__ import annotations

from pathlib import Path

from llmux.cli.doctor.facts import Listener
from llmux.cli.doctor.processes import listeners_of, lock_holder
from llmux.cli.terminal.target import LOOPBACK
from llmux.config import Config, load_config
from llmux.errors import ConfigError


def url_of(listener: Listener, config: Config | None) -> str:
    """Return the URL by which this machine reaches a listener of llmux's."""
    host = LOOPBACK.get(listener.host, listener.host)
    scheme = "http" if config is None or config.tls is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}"


def urls_of_config(path: Path) -> list[str]:
    """Return where the llmux that holds the state folder of a config listens; none if none does."""
    try:
        config = load_config(path)
        holder = lock_holder(config.state_dir)
    except (ConfigError, OSError):
        return []
    return [] if holder is None else [url_of(each, config) for each in listeners_of(holder.pid)]
