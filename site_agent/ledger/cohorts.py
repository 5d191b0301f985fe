"""Whom an event charges.

An event charges the patients who were in that version of the data set, by whatever name the data set went.
A data set's loss is its worst patient's: patients with the same memberships form a group, and the loss is
computed for each group whose memberships are not part of another's. That is exact, patient by patient. Where
the groups get many (more than MAX_GROUPS), one with all their memberships stands for them: never too low.
"""

from __future__ import annotations

import json
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection, select

from cipherward.site_agent.ledger.accounting import PrivacyEvent, merged
from cipherward.site_agent.ledger.chain import Kind
from cipherward.site_agent.ledger.encoding import events_from_json
from cipherward.site_agent.ledger.tables import events, patients

MAX_GROUPS = 8

Membership = tuple[str, int, int | None]
"""A data set, the first version with the patient, the first version without."""
Group = frozenset[Membership]
History = tuple[PrivacyEvent, ...]


def groups(connection: Connection, dataset: str) -> frozenset[Group]:
    """The different membership records of the data set's present patients, in all data sets."""
    present = select(patients.c.digest).where(patients.c.dataset == dataset, patients.c.until.is_(None))
    rows = connection.execute(
        select(patients.c.digest, patients.c.dataset, patients.c.since, patients.c.until)
        .where(patients.c.digest.in_(present))
        .order_by(patients.c.digest)
    )
    found = set()
    for _, memberships in groupby(rows, key=itemgetter(0)):
        found.add(frozenset((row.dataset, row.since, row.until) for row in memberships))
    return frozenset(found)


def overlapping(of: frozenset[Group]) -> frozenset[str]:
    """The data sets, past or present, in which these patients are or were, their own included."""
    return frozenset(name for group in of for name, _, _ in group)


def histories(connection: Connection, of: frozenset[Group], study: str | None = None) -> list[History]:
    """What each group that may be the worst has been charged so far, in one study or in all, merged. Never
    empty."""
    names = overlapping(of)
    spent: dict[tuple[str, int], list[PrivacyEvent]] = {}
    query = select(events.c.dataset, events.c.version, events.c.details).where(
        events.c.kind == Kind.RESERVE.value, events.c.dataset.in_(names)
    )
    if study is not None:
        query = query.where(events.c.study == study)
    for row in connection.execute(query.order_by(events.c.sequence)):
        cost = events_from_json(json.loads(row.details)["events"])
        spent.setdefault((row.dataset, row.version), []).extend(cost)
    charged = {frozenset(key for key in spent if _charges(key, group)) for group in of}
    worst = [keys for keys in charged if not any(keys < other for other in charged)]
    if len(worst) > MAX_GROUPS:
        worst = [frozenset().union(*worst)]
    found = {merged(event for key in sorted(keys) for event in spent[key]) for keys in worst}
    return sorted(found, key=repr) or [()]


def _charges(key: tuple[str, int], group: Group) -> bool:
    dataset, version = key
    return any(
        name == dataset and since <= version and (until is None or version < until)
        for name, since, until in group
    )
