"""The journal of the simulation's sites follows the rules of the real one: the same calls, the same outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sim_journal import Journal
from sqlalchemy import delete, insert

from cipherward.clock import ManualClock
from cipherward.errors import CipherwardError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.journal import journal as real
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.opening import open_state
from cipherward.site_agent.state.tables import incidents, rounds, studies


class Call(NamedTuple):
    method: str
    number: int
    value: int


calls = st.lists(
    st.builds(
        Call,
        st.sampled_from(
            ["open", "attempt root", "commit", "put_join", "accept_plan", "next_attempt", "close"]
        ),
        st.integers(1, 2),
        st.integers(1, 2),
    ),
    max_size=20,
)
COLUMNS = (
    "round_record",
    "attempt",
    "chunk_count",
    "ciphertext_root",
    "commit_record",
    "transcript",
    "aborted",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = open_state(SiteFolder(Path(tmp_path_factory.mktemp("site"))))
    yield opened
    opened.dispose()


def do(journal: Any, call: Call, record: Any) -> Any:
    """The outcome: what it returns, or the kind of error."""
    number, content = call.number, b"%d" % call.value
    try:
        match call.method:
            case "open":
                return journal.write(number, round_record=content)
            case "attempt root":
                return journal.write(number, chunk_count=2, ciphertext_root=content)
            case "commit":
                return journal.write(number, commit_record=content)
            case "close":
                return journal.write(
                    number, transcript=content, aborted=call.value == 2, closing_record=content
                )
            case "put_join":
                return journal.put_join(number, record)
            case "accept_plan":
                return journal.accept_plan(number, record)
            case _:
                return journal.next_attempt(number)
    except CipherwardError as error:
        return type(error)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(calls)
def test_both_journals_do_the_same(engine: Any, made: list[Call]) -> None:
    with engine.begin() as connection:
        for table in (rounds, incidents, studies):
            connection.execute(delete(table))
        connection.execute(insert(studies).values(study="s", state="", transcript=b"", model_digest=b""))
    one, other = real.Journal(engine, "s", ManualClock()), Journal()
    for call in made:
        signed = Signed(payload=b"%d" % call.value)
        assert do(one, call, signed) == do(other, call, (call.value,)), call
        for number in (1, 2):
            expected, found = one.entry(number), other.entry(number)
            assert [getattr(expected, name) for name in COLUMNS] == [getattr(found, name) for name in COLUMNS]
            for name in ("join_record", "plan_record"):
                record, known = getattr(expected, name), getattr(found, name)
                assert (record is None) == (known is None), name
                assert record is None or Signed.FromString(record).payload == b"%d" % known[0]
            former = len(expected.former_joins or b"") // 32
            assert former == len(found.former_joins or ())
        assert [entry.round for entry in one.history()] == [entry.round for entry in other.history()]
