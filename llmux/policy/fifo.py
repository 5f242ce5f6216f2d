"""First come, first served: the oldest waiting request decides."""

from __future__ import annotations

from llmux.config import PolicyConfig
from llmux.policy.base import Decision, LookAgain, Snapshot, Stay, SwitchTo


class FifoPolicy:
    """Switch to the model of the oldest waiting request, at once, after `min_active_secs`."""

    def __init__(self, config: PolicyConfig) -> None:
        self._min_active_s = config.min_active_secs

    def decide(self, snapshot: Snapshot) -> Decision:
        """Say what to do now."""
        wanted = [
            (view.oldest_arrival, view)
            for view in snapshot.models.values()
            if view.oldest_arrival is not None and view.name != snapshot.active
        ]
        if not wanted:
            return Stay()
        may_start_at = min(view.retry_at for _, view in wanted)
        if snapshot.active_since is not None:
            may_start_at = max(may_start_at, snapshot.active_since + self._min_active_s)
        if may_start_at > snapshot.now:
            return LookAgain(may_start_at)
        # A model whose wake failed delays nobody else: the others go ahead of it.
        arrival, oldest = min(
            ((arrival, view) for arrival, view in wanted if view.retry_at <= snapshot.now),
            key=lambda pair: pair[0],
        )
        return SwitchTo(oldest.name, f"its oldest request waits {snapshot.now - arrival:.1f} s")
