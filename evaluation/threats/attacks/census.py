"""Every field that can leave a site, from the wire format itself, and every place where a coordinator keeps something.

Names are ``Message.field``: what a field means does not depend on the call that carries it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FileDescriptor

from cipherward.coordinator.api.policy import POLICIES
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2, round_pb2

SERVICE = "Coordinator"
COORDINATORS = frozenset({"RoundRecord", "PlanRecord", "CloseRecord", "AbortRecord", "Contribution"})
"""Of round.proto, what the coordinator signs. Everything else there is a record of a site's."""


def leaving_sites(
    service: FileDescriptor = coordinator_pb2.DESCRIPTOR, records: FileDescriptor = round_pb2.DESCRIPTOR
) -> frozenset[str]:
    """The fields of everything that a site can send: of each call's request that sites may make, and of each record
    that sites sign, which travels as the payload of a ``Signed``."""
    starts: list[Descriptor] = []
    for method in service.services_by_name[SERVICE].methods:
        # A call without a row in the policy table is not served; if it is there it counts.
        policy = POLICIES.get(method.name)
        if policy is None or Role.SITE in policy.roles:
            starts.append(method.input_type)
    starts += [message for name, message in records.message_types_by_name.items() if name not in COORDINATORS]
    return frozenset(_fields(starts))


def _fields(starts: Iterable[Descriptor]) -> Iterator[str]:
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        message = waiting.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        for field in message.fields:
            yield f"{message.name}.{field.name}"
            if field.message_type is not None:
                waiting.append(field.message_type)


def stored(database: Path) -> frozenset[str]:
    """``table.column`` of a coordinator's SQLite database, and the keys of the states of its studies."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {
            f"{table}.{row[1]}"
            for table in tables
            if not table.startswith(("sqlite_", "alembic_"))
            for row in connection.execute(f'SELECT * FROM pragma_table_info("{table}")')  # noqa: S608 - its own tables
        }
        for (state,) in connection.execute("SELECT state FROM studies"):
            found |= {f"state:{key}" for key in json.loads(state)}
    return frozenset(found)


def logged(lines: Iterable[str]) -> frozenset[str]:
    """The keys of a log's lines; what is no JSON is for a person at a terminal and left out."""
    found: set[str] = set()
    for line in lines:
        if line.startswith("{"):
            found |= json.loads(line).keys()
    return frozenset(found - {"event", "level", "timestamp"})
