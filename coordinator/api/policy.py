"""The one table of who may call which RPC, and of every limit on it. An RPC without a row is not served. What
exceeds a limit is refused with RESOURCE_EXHAUSTED and the limit's name, as it stands here."""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.ids import Role

KIB, MIB, GIB = 2**10, 2**20, 2**30
ANYONE = frozenset({Role.SITE, Role.OPERATOR})
SITES = frozenset({Role.SITE})
OPERATORS = frozenset({Role.OPERATOR})
HOUR = 3600.0
UPLOAD_MESSAGE = 1 * MIB
"""A chunk or share is smaller."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One RPC. Rates, open calls and what is stored are counted for each caller, over all its connections."""

    roles: frozenset[Role]
    max_message: int
    """Bytes of one message to the coordinator."""
    per_second: float
    """Calls, on average ..."""
    burst: int
    """... and at once."""
    open_calls: int = 4
    """At the same time."""
    max_total: int | None = None
    """Bytes of all messages of one call together, where the caller streams. The study allows less: its own size."""
    max_seconds: float | None = None
    """A stream's length, from the first byte to the last."""
    idle_seconds: float = 30.0
    """How long the coordinator waits for the caller's next message, or for the caller to take one."""
    max_stored: int | None = None
    """Bytes that a caller may have lying here for others."""


POLICIES: dict[str, Policy] = {
    "Hello": Policy(ANYONE, 16 * KIB, 2, 20),
    "GetStatusList": Policy(ANYONE, 4 * KIB, 2, 20),
    "GetManifest": Policy(ANYONE, 4 * KIB, 5, 20),
    "GetInitialWeights": Policy(ANYONE, 4 * KIB, 1, 10, open_calls=2, max_seconds=HOUR, idle_seconds=60),
    "GetRecord": Policy(ANYONE, 4 * KIB, 20, 60),
    "WatchWork": Policy(SITES, 4 * KIB, 2, 20, open_calls=8),
    "PostJoin": Policy(SITES, 64 * KIB, 5, 20),
    "GetUploadState": Policy(SITES, 4 * KIB, 10, 40),
    "Upload": Policy(SITES, UPLOAD_MESSAGE, 2, 20, open_calls=3, max_total=32 * GIB, max_seconds=HOUR),
    "PostCommit": Policy(SITES, 64 * KIB, 5, 20),
    "GetShares": Policy(SITES, 4 * KIB, 5, 20, max_seconds=HOUR),
    "PostAcknowledgement": Policy(SITES, 256 * KIB, 5, 20),
    "PostAnswer": Policy(SITES, 2 * MIB, 5, 20),
    "GetAnswers": Policy(SITES, 4 * KIB, 5, 20, max_seconds=HOUR),
    "GetSum": Policy(SITES, 4 * KIB, 5, 20, open_calls=2, max_seconds=HOUR, idle_seconds=60),
    "GetUpdateChunks": Policy(SITES, 64 * KIB, 5, 20, open_calls=2, max_seconds=HOUR, idle_seconds=60),
    "PostSumCheck": Policy(SITES, 256 * KIB, 5, 20),
    "GetSumChecks": Policy(SITES, 4 * KIB, 5, 20, max_seconds=HOUR),
    "PostModelReport": Policy(SITES, 64 * KIB, 5, 20),
    "GetModelReports": Policy(SITES, 4 * KIB, 5, 20, max_seconds=HOUR),
    # A key maker sends one item to every site.
    "PutRelay": Policy(
        SITES, 1 * MIB + 64 * KIB, 50, 1000, max_total=8 * GIB, max_seconds=HOUR, max_stored=16 * GIB
    ),
    "GetRelay": Policy(SITES, 4 * KIB, 5, 20, open_calls=2, max_seconds=HOUR, idle_seconds=60),
    "RequestModel": Policy(SITES, 4 * KIB, 1, 10),
    "StartStudy": Policy(OPERATORS, 9 * MIB, 1, 10, open_calls=1, max_total=8 * GIB, max_seconds=HOUR),
    "AbortStudy": Policy(OPERATORS, 128 * KIB, 1, 10),
    "GetStudyStatus": Policy(OPERATORS, 4 * KIB, 10, 40),
    "WatchStudy": Policy(OPERATORS, 4 * KIB, 2, 20),
    # grpc.health.v1
    "Health.Check": Policy(ANYONE, 1 * KIB, 2, 20),
    "Health.Watch": Policy(ANYONE, 1 * KIB, 1, 10, open_calls=2),
}

MAX_CHUNKS = 1024
"""Chunks of updates in the answer to one GetUpdateChunks; one of each update in any case."""

CALLER_OPEN_CALLS = 32
"""Of one caller, all RPCs together: what a caller may make the coordinator hold in memory is bounded by it."""

MAX_MESSAGE = max(policy.max_message for policy in POLICIES.values()) + 4 * KIB
"""What the transport takes in before the row is looked at."""
MAX_METADATA = 8 * KIB
"""Bytes of a call's headers."""
MAX_OPEN_CALLS = 8192
"""Of all callers together. 1,000 sites need about 3,000."""
MAX_STREAMS = 64
"""Calls on one connection. The next one waits at its sender: HTTP/2 has no refusal for it."""
MAX_CONNECTIONS = 4096
"""A further one is closed before its TLS handshake."""
HANDSHAKE_SECONDS = 20
"""For a connection's TLS handshake; before its end nobody is known."""


def table() -> list[tuple[str, ...]]:
    """The table as the documentation shows it: a row for each RPC, each limit as text."""
    rows = [("RPC", "callers", *(name for name in LIMITS))]
    for rpc, policy in POLICIES.items():
        callers = " and ".join(sorted(role.value + "s" for role in policy.roles))
        rows.append((rpc, callers, *(_shown(name, getattr(policy, name)) for name in LIMITS)))
    return rows


LIMITS = (
    "max_message",
    "per_second",
    "burst",
    "open_calls",
    "max_total",
    "max_seconds",
    "idle_seconds",
    "max_stored",
)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("max_message", "max_total", "max_stored"):
        return size(int(value))
    return f"{value:g}"


def size(count: int) -> str:
    """Bytes in words, exactly."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"
