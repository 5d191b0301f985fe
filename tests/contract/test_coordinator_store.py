"""What the coordinator relies on from its database and blobs. Any database that is supported must pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.rounds.state import Committed, Joining, Phase, State
from cipherward.coordinator.store.chunks import ChunkSet, Segment
from cipherward.coordinator.store.database import Store
from cipherward.coordinator.store.relay import RelayRow
from cipherward.coordinator.store.schema import metadata
from cipherward.coordinator.store.studies import ANSWER, COMMIT, SUM_CHECK, StudyRow
from cipherward.crypto.merkle import leaf_hash
from cipherward.errors import EnvironmentProblem
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_ROUND
from cipherward.proto.v1.round_pb2 import RelayItem

STATE = State(
    round=2,
    phase=Phase.UPLOAD,
    since=4.5,
    model=b"\x01" * 32,
    keys=frozenset({(1, "a")}),
    joins={"a": Joining(b"r", b"k")},
    commits={"a": Committed(3, b"c")},
    plan=("a", "b"),
)
KEY, MODEL = RelayItem.KIND_SHARED_KEY, RelayItem.KIND_MODEL


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url)
    with opened.transaction() as t:
        t.studies.create(StudyRow("s", STATE, b"t" * 32, "w"))
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/blobs")


def test_the_migrations_make_the_schema(store: Store) -> None:
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_states_come_back_as_they_were(store: Store, database_url: str) -> None:
    store.close()
    again = Store(database_url)
    with again.transaction() as t:
        (row,) = t.studies.all()
        assert row == StudyRow("s", STATE, b"t" * 32, "w")
        t.studies.save("s", State(3, Phase.OPEN, 0.0, b"m"), b"u" * 32)
    with again.transaction() as t:
        assert t.studies.all()[0].state.round == 3
    again.close()


def test_a_transaction_that_fails_changes_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction() as t:
        t.studies.save("s", State(9, Phase.OPEN, 0.0, b"m"), b"u" * 32)
        t.studies.add_record("s", 9, RECORD_KIND_ROUND, b"d", Signed(payload=b"p"))
        raise RuntimeError
    with store.transaction() as t:
        assert t.studies.all()[0].state.round == 2
        assert t.studies.record("s", 9, RECORD_KIND_ROUND) is None


def test_a_round_has_one_record_of_a_kind(store: Store) -> None:
    with store.transaction() as t:
        t.studies.add_record("s", 1, RECORD_KIND_CLOSE, b"d", Signed(payload=b"close"))
    with pytest.raises(IntegrityError), store.transaction() as t:
        t.studies.add_record("s", 1, RECORD_KIND_CLOSE, b"e", Signed(payload=b"abort"))
    with store.transaction() as t:
        assert t.studies.record("s", 1, RECORD_KIND_CLOSE) == Signed(payload=b"close")


def test_manifests_and_posts(store: Store) -> None:
    with store.transaction() as t:
        for version in (2, 1):
            t.studies.add_manifest("s", version, bytes([version]) * 32, Signed(payload=bytes([version])))
        for number, text in ((1, b"old"), (3, b"new"), (3, b"newer")):
            t.studies.put_post("s", number, COMMIT, "a", Signed(payload=text))
        t.studies.put_post("s", 3, COMMIT, "b", Signed(payload=b"other"))
    with store.transaction() as t:
        assert [item.payload for item in t.studies.manifests("s")] == [b"\x01", b"\x02"]
        assert t.studies.post("s", 1, COMMIT, "a") == Signed(payload=b"old")
        assert t.studies.last_post("s", COMMIT, "a") == Signed(payload=b"newer")
        assert t.studies.last_post("s", COMMIT, "c") is None
        assert list(t.studies.round_posts("s", 3, COMMIT)) == ["a", "b"]


def test_posts_of_some_sites_and_posts_that_are_needed_no_longer(store: Store) -> None:
    with store.transaction() as t:
        for kind in (ANSWER, SUM_CHECK, COMMIT):
            for number, site in ((3, "a"), (3, "b"), (3, "c"), (4, "a")):
                t.studies.put_post("s", number, kind, site, Signed(payload=f"{kind}{number}{site}".encode()))
    with store.transaction() as t:
        found = t.studies.posts_of("s", 3, ANSWER, ["c", "nobody", "a"])
        assert found == [("c", Signed(payload=b"answer3c")), ("a", Signed(payload=b"answer3a"))]
        t.studies.drop_posts("s", 3, (ANSWER, SUM_CHECK))
    with store.transaction() as t:
        assert t.studies.posts_of("s", 3, ANSWER, ["a", "b", "c"]) == []
        assert not t.studies.round_posts("s", 3, SUM_CHECK)
        assert len(t.studies.round_posts("s", 3, COMMIT)) == 3
        assert t.studies.post("s", 4, ANSWER, "a") is not None


def test_round_figures_add_up(store: Store) -> None:
    with store.transaction() as t:
        t.studies.open_round("s", 1, 10.0)
        t.studies.plan_round("s", 1, 12.0)
        t.studies.close_round("s", 1, ("a", "b"))
        t.studies.add_traffic("s", 1, 5, 7)
        t.studies.add_traffic("s", 1, 2**40, 1)
        t.studies.report_round("s", 1, 14.0)
    with store.transaction() as t:
        (one,) = t.studies.history("s")
    assert (one.contributors, one.bytes_up, one.bytes_down) == (("a", "b"), 2**40 + 5, 8)
    assert (one.opened_at, one.planned_at, one.reported_at, one.aborted) == (10.0, 12.0, 14.0, False)


def test_names_come_in_one_order_whatever_the_database_sorts_by(store: Store) -> None:
    names = ["a-z", "a1", "ab", "ab-c", "abb", "z"]
    with store.transaction() as t:
        for name in reversed(names):
            t.studies.create(StudyRow(name, STATE, b"t" * 32, "w"))
            t.studies.put_post("s", 1, COMMIT, name, Signed(payload=b"x"))
            t.relay.request_model("s", name, 1)
    with store.transaction() as t:
        assert list(t.studies.round_posts("s", 1, COMMIT)) == names
        assert t.relay.requests("s") == tuple(names)
        assert [row.study for row in t.studies.all()] == sorted([*names, "s"])


def test_text_of_callers_is_stored_as_far_as_databases_can(store: Store) -> None:
    reason = "Größe \U0001f3e5 \x00 'quoted' \\ %s"
    with store.transaction() as t:
        t.studies.open_round("s", 1, 10.0)
        t.studies.abort_round("s", 1, reason)
        t.studies.save("s", State(2, Phase.OPEN, 0.0, b"m", reason=reason), b"u" * 32)
    with store.transaction() as t:
        assert t.studies.history("s")[0].reason == reason.replace("\x00", " ")
        (row,) = t.studies.all()
        assert row.state.reason == reason


def test_times_keep_their_microseconds(store: Store) -> None:
    with store.transaction() as t:
        t.studies.open_round("s", 1, 1_790_000_000.123456)
        t.studies.save("s", State(2, Phase.OPEN, 123456789.000001, b"m"), b"u" * 32)
    with store.transaction() as t:
        assert t.studies.history("s")[0].opened_at == 1_790_000_000.123456
        assert t.studies.all()[0].state.since == 123456789.000001


def relay_row(kind: int, sender: str, number: int, at: float, manifest: bytes = b"m1") -> RelayRow:
    chunk_set = f"{sender}{number}{at}"
    return RelayRow("s", kind, manifest, "a", sender, number, at, Signed(payload=b"x"), chunk_set)


def test_relay_gives_the_newest(store: Store) -> None:
    with store.transaction() as t:
        assert t.relay.put(relay_row(MODEL, "b", 1, 1.0)) is None
        assert t.relay.put(relay_row(MODEL, "b", 2, 2.0)) == "b11.0"
        assert t.relay.put(relay_row(MODEL, "c", 2, 3.0)) is None
        t.relay.put(relay_row(KEY, "b", 0, 1.0, b"m1"))
        t.relay.put(relay_row(KEY, "b", 0, 2.0, b"m2"))
    with store.transaction() as t:
        newest, mine, key = (
            t.relay.find("s", MODEL, "a"),
            t.relay.find("s", MODEL, "a", sender="b"),
            t.relay.find("s", KEY, "a", manifest=b"m1"),
        )
        assert newest and mine and key
        assert (newest.sender, mine.sender, key.stored_at) == ("c", "b", 1.0)
        assert t.relay.find("s", MODEL, "b") is None
        assert sorted(t.relay.drop_models("s", "a", 3)) == ["b22.0", "c23.0"]
        assert t.relay.find("s", KEY, "a") is not None


def test_model_requests(store: Store) -> None:
    with store.transaction() as t:
        t.relay.request_model("s", "b", 1)
        t.relay.request_model("s", "a", 0)
        t.relay.request_model("s", "a", 2)
        assert t.relay.requests("s") == ("a", "b")
        t.relay.forget_request("s", "a")
        assert t.relay.requests("s") == ("b",)


def test_chunk_sets_find_their_chunks(store: Store, blobs: Blobs) -> None:
    chunks = [os.urandom(50_000 + i) for i in range(100)]
    writer, kept = SegmentWriter(blobs, 0), ChunkSet("u")
    for chunk in chunks:
        writer.add(chunk, leaf_hash(chunk))
        if writer.full:
            segment = writer.flush()
            assert segment
            kept = kept.extended(segment)
    last = writer.flush()
    assert last and writer.flush() is None
    kept = kept.extended(last)
    assert len(kept.segments) == 3
    with store.transaction() as t:
        for part in kept.segments:
            t.chunks.add("u", part)
    with store.transaction() as t:
        loaded = t.chunks.load("u")
        assert t.chunks.count("u") == loaded.count == 100
        assert t.chunks.load("other").count == t.chunks.count("other") == 0
        assert t.chunks.names("u") == ["u"] and t.chunks.names("_") == []
    assert [blobs.read(loaded.place(i)) for i in (0, 41, 42, 99)] == [chunks[i] for i in (0, 41, 42, 99)]
    assert [blobs.read(place) for place in loaded.places(97)] == chunks[97:]
    assert loaded.leaves() == [leaf_hash(chunk) for chunk in chunks]
    with pytest.raises(IndexError):
        loaded.place(100)
    with pytest.raises(ValueError, match="follow"):
        loaded.extended(Segment(99, "x", (1,), (b"",)))
    with store.transaction() as t:
        dropped = t.chunks.drop("u")
    blobs.delete([*dropped, *dropped])
    with pytest.raises(EnvironmentProblem):
        blobs.read(loaded.place(0))
