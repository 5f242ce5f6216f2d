"""The numbers of a run: llmux's limits, load, fault rates and tolerances."""

from __future__ import annotations

# ---- llmux's config: short times and small limits, so that all of it happens often ----

WAIT_S = 8.0
DRAIN_S = 5.0
STALL_S = 3.0
BODY_S = 10.0
HOOK_S = {"wake": 4, "sleep": 3, "stop": 3, "alive": 1, "prefetch": 2, "verify_asleep": 2}
BODY_BYTES = 8 << 20
QUEUED_BYTES = 64 << 20
CONNECTIONS = 400
KEY = "soak-key"
"""Good clients always send this key; reloads decide if llmux requires it."""

POLICY = {
    "max_wait_secs": 3,
    "request_timeout_secs": WAIT_S,
    "drain_timeout_secs": DRAIN_S,
    "alive_interval_secs": 1,
    "alive_failures": 2,
}
LIMITS = {
    "body_bytes": BODY_BYTES,
    "queued_per_model": 20,
    "queued_bytes": QUEUED_BYTES,
    "client_stall_secs": STALL_S,
    "body_secs": BODY_S,
    "connections": CONNECTIONS,
}

# ---- Memory ----

SEND_BUFFER_BYTES = 256 << 10
"""Most bytes buffered of a response that its client does not read: what a lane reads from a backend
at a time, and the buffers of Hypercorn and asyncio (64 KiB is asyncio's high-water mark)."""

HEAD_BYTES = 64 << 10
RECEIVE_BYTES = 64 << 10
FEED_BYTES = 48 << 20
"""Memory of `/control/history` and the feed: the last hour."""


def memory_bound_bytes(base_bytes: int) -> int:
    """Bound on resident memory that the config implies, in bytes.

    base + queued_bytes + 2 x body_bytes + feed
    + connections x (send buffer + head + receive buffer)

    The two bodies are copies: one body is joined or rewritten at a time, and one is parsed.

    Args:
        base_bytes: Resident memory when it listens and has had no clients.
    """
    per_connection = SEND_BUFFER_BYTES + HEAD_BYTES + RECEIVE_BYTES
    return base_bytes + QUEUED_BYTES + 2 * BODY_BYTES + CONNECTIONS * per_connection + FEED_BYTES


# ---- The load ----

CLIENTS = 30
H2_CLIENTS = 5
WEBSOCKET_CLIENTS = 5
OWN_PATH_CLIENTS = 3
HOSTILE_CLIENTS = 8
THINK_S = 0.4
"""Mean pause between two requests of a client."""

HOSTILE_THINK_S = 0.7
"""Mean pause of a hostile client between two acts, so that two cores suffice."""

HOSTILE_S = 8.0
"""Longest act of a hostile client."""

REQUEST_S = 90.0
"""A request that takes longer hangs. The time covers two waits of WAIT_S (one refused), each with a
drain or the time to find a model down, and the hooks that run meanwhile."""

FAVOURITE_S = 20.0
"""Duration for which some models are more popular than others."""

# ---- Faults: mean seconds between two ----

EVERY_S = {
    "wake hook": 6.0,
    "sleep hook": 10.0,
    "stop hook": 15.0,
    "verify_asleep hook": 10.0,
    "backend killed": 8.0,
    "backend stopped": 20.0,
    "forced switch": 3.0,
    "manual mode": 40.0,
    "pin": 15.0,
    "sleep": 10.0,
    "cancel": 1.0,
    "reload": 2.0,
}
MOST_KILLS = 12
"""Kills of llmux itself; all in the first half of a run, so that the second half shows leaks."""

WAKE_FAULTS = (
    "fails", "fails late", "hangs", "hangs late", "ignores SIGTERM", "prints 10 MB", "is no UTF-8",
    "fails, no UTF-8",
)  # fmt: skip
SLEEP_FAULTS = ("fails", "hangs", "ignores SIGTERM")
SLEEP_FAULTS_VERIFIED = (*SLEEP_FAULTS, "does nothing")
"""Only for models with a verify_asleep hook: llmux believes the sleep hooks of others."""

LIES = {
    "garbage head": 8, "resets": 6, "length too long": 6, "length too short": 4, "breaks off": 6,
    "resets half-way": 4, "breaks framing": 4, "stalls": 6, "says 503": 4, "refuses": 1,
    "crashes": 1, "crashes half-way": 1, "hangs": 1,
}  # fmt: skip
LIES_OF_PLAIN = {"length too long", "length too short", "says 503"}
LIES_OF_STREAM = {"breaks framing"}
LIE_SHARE = 0.08

# ---- Tolerances ----

CODES: dict[str, set[int]] = {
    "no_model": {404}, "model_not_found": {404}, "bad_request": {400, 408, 431},
    "body_too_large": {413}, "queue_full": {429}, "switch_timeout": {504}, "hook_failed": {500},
    "manual_mode": {503}, "pinned": {503}, "cancelled": {503}, "not_ready": {503},
    "shutting_down": {503}, "too_many_connections": {503}, "backend_error": {502},
    "model_failing": {503}, "no_room": {409},
}  # fmt: skip
"""llmux's errors, each with its statuses."""

MAY_FOLLOW = {
    "garbage head": {"backend_error"},
    "resets": {"backend_error"},
    "length too long": {"cut"},
    "length too short": {"ok"},
    "breaks off": {"cut"},
    "resets half-way": {"cut", "backend_error"},
    "breaks framing": {"cut", "backend_error"},
    "stalls": {"cut", "left"},
    "says 503": {"ok"},
    "refuses": {"ok"},
    "crashes": {"backend_error"},
    "crashes half-way": {"cut", "backend_error"},
    "hangs": {"not_ready", "backend_error"},
}
"""Outcomes of a request with a fault of its own. A reset overtakes the bytes sent before it."""

NEEDS_CAUSE = frozenset({"backend_error", "cut", "not_ready", "hook_failed", "cancelled"})
CAUSE_BEFORE_S = 15.0
CAUSE_AFTER_S = 2.0
CANCEL_S = 2.5
"""Longest time until a reading client sees the end of its cancelled request: twice the second in
which the lanes check their clients, and what the kernel still buffers for it."""

CUT_S = 45.0
"""Longest time until a client notices a cut; a keep-alive would end only after 75 s."""

STOPPED_BODY_S = STALL_S + 3.0
"""Longest time until a stalled body is refused: the stall limit, and checks once a second."""

DRAIN_OVER_S = DRAIN_S + 4.0
"""A drain that lasts longer ignores its deadline. The check runs every 0.3 s, and takes time."""

STALL_VIOLATION_S = {True: 5.0, False: 10.0}
"""A cheap request that takes longer met a blocked loop: on a persistent connection; on a new one,
where the kernel's own retries may add 1, 3 or 7 s (RFC 6298: SYN again)."""

OWN_LAG_S = 1.0
"""If the soak's own timers were this late, the machine was: llmux is not blamed for stalls."""

END_S = 60.0
SAMPLE_S = 1.0
ROWS = 10
DESCRIPTOR_MARGIN = 4
LOG_BYTES_PER_REQUEST = 2048
"""Most bytes that llmux may log for each request, good or hostile."""

MEMORY_FROM_MINUTES = 8.0
"""Memory is not judged in shorter runs: their second half is too short."""

MEMORY_MARGIN_BYTES = 8 << 20
