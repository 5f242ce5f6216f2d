"""Which groups a llmux of their own could serve: those that share nothing with others."""

from __future__ import annotations

from llmux.config.memory import models_of
from llmux.config.shape import Config


def separable(config: Config) -> list[tuple[str, ...]]:
    """Return the groups in parts that share no server, in the file's order.

    No resource is used by two groups: that is a mistake. Ports that llmux chooses are no reason to
    stay together: several llmux on a machine choose different ones. What hooks share is not known.
    """
    order = {group: number for number, group in enumerate(config.groups_of_models)}
    parts: list[tuple[tuple[str, ...], frozenset[str]]] = []
    for group in config.groups_of_models:
        servers = frozenset(filter(None, (m.address for m in models_of(config, group))))
        touching = [part for part in parts if part[1] & servers]
        names = sorted(
            (*(name for part, _ in touching for name in part), group), key=order.__getitem__
        )
        parts = [part for part in parts if part not in touching]
        parts.append((tuple(names), servers.union(*(theirs for _, theirs in touching))))
    return sorted((part for part, _ in parts), key=lambda part: order[part[0]])
