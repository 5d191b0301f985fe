"""The one table of who may call which RPC, how large its messages and how frequent its calls may be. An RPC
without a row is not served."""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.ids import Role

KIB, MIB = 2**10, 2**20
ANYONE = frozenset({Role.SITE, Role.OPERATOR})
SITES = frozenset({Role.SITE})
OPERATORS = frozenset({Role.OPERATOR})


@dataclass(frozen=True, slots=True)
class Policy:
    """One RPC. ``per_second`` and ``burst`` limit one caller's calls, ``open_calls`` those open at a time."""

    roles: frozenset[Role]
    max_message: int
    per_second: float
    burst: int
    open_calls: int = 4


POLICIES: dict[str, Policy] = {
    "Hello": Policy(ANYONE, 16 * KIB, 2, 20),
    "GetStatusList": Policy(ANYONE, 4 * KIB, 2, 20),
    "GetManifest": Policy(ANYONE, 4 * KIB, 5, 20),
    "GetInitialWeights": Policy(ANYONE, 4 * KIB, 1, 10, open_calls=2),
    "GetRecord": Policy(ANYONE, 4 * KIB, 20, 60),
    "WatchWork": Policy(SITES, 4 * KIB, 2, 20, open_calls=8),
    "PostJoin": Policy(SITES, 64 * KIB, 5, 20),
    "GetUploadState": Policy(SITES, 4 * KIB, 10, 40),
    "Upload": Policy(SITES, 1 * MIB, 2, 20, open_calls=3),
    "PostCommit": Policy(SITES, 64 * KIB, 5, 20),
    "GetShares": Policy(SITES, 4 * KIB, 5, 20),
    "PostAcknowledgement": Policy(SITES, 256 * KIB, 5, 20),
    "PostAnswer": Policy(SITES, 2 * MIB, 5, 20),
    "GetAnswers": Policy(SITES, 4 * KIB, 5, 20),
    "GetSum": Policy(SITES, 4 * KIB, 5, 20, open_calls=2),
    "GetUpdateChunks": Policy(SITES, 64 * KIB, 5, 20, open_calls=2),
    "PostSumCheck": Policy(SITES, 256 * KIB, 5, 20),
    "GetSumChecks": Policy(SITES, 4 * KIB, 5, 20),
    "PostModelReport": Policy(SITES, 64 * KIB, 5, 20),
    "GetModelReports": Policy(SITES, 4 * KIB, 5, 20),
    # A key maker sends one item to every site.
    "PutRelay": Policy(SITES, 1 * MIB + 64 * KIB, 50, 1000),
    "GetRelay": Policy(SITES, 4 * KIB, 5, 20, open_calls=2),
    "RequestModel": Policy(SITES, 4 * KIB, 1, 10),
    "StartStudy": Policy(OPERATORS, 9 * MIB, 1, 10, open_calls=1),
    "AbortStudy": Policy(OPERATORS, 128 * KIB, 1, 10),
    "GetStudyStatus": Policy(OPERATORS, 4 * KIB, 10, 40),
    "WatchStudy": Policy(OPERATORS, 4 * KIB, 2, 20),
}

MAX_MESSAGE = max(policy.max_message for policy in POLICIES.values())
"""What the transport lets through before the row is looked at."""
