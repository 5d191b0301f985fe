"""A copy of a coordinator's folder, and ways to change it that an audit must name."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey
from cipherward.proto.v1 import round_pb2, study_pb2
from cipherward.proto.v1.common_pb2 import Signed

ROUND, PLAN, CLOSE = 1, 2, 3


class Store:
    """A copy of the folder, to be tampered with."""

    def __init__(self, folder: Path, key: SigningKey, keys: dict[str, SigningKey] | None = None) -> None:
        self.folder, self.key, self.keys = folder, key, keys or {}

    def sql(self, statement: str, *values: Any, rows: int = 1) -> None:
        with sqlite3.connect(self.folder / "coordinator.db") as connection:
            assert connection.execute(statement, values).rowcount == rows, statement

    def one(self, query: str, *values: Any) -> Any:
        with sqlite3.connect(self.folder / "coordinator.db") as connection:
            return connection.execute(query, values).fetchone()

    def blob(self, chunk_set: str) -> Path:
        (name,) = self.one("SELECT blob FROM segments WHERE chunk_set = ?", f"trial/{chunk_set}")
        return next((self.folder / "blobs").rglob(name))

    def flip(self, chunk_set: str, index: int) -> bytes:
        """Alter a byte of one chunk; the chunk as it is then."""
        path = self.blob(chunk_set)
        (raw,) = self.one("SELECT sizes FROM segments WHERE chunk_set = ?", f"trial/{chunk_set}")
        sizes = struct.unpack(f">{len(raw) // 4}I", raw)
        content = bytearray(path.read_bytes())
        start = sum(sizes[:index])
        content[start] ^= 1
        path.write_bytes(content)
        return bytes(content[start : start + sizes[index]])

    def leaves(self, chunk_set: str) -> list[bytes]:
        (raw,) = self.one("SELECT leaves FROM segments WHERE chunk_set = ?", f"trial/{chunk_set}")
        return [raw[at : at + 32] for at in range(0, len(raw), 32)]

    def set_leaf(self, chunk_set: str, index: int, chunk: bytes) -> None:
        leaves = self.leaves(chunk_set)
        leaves[index] = leaf_hash(chunk)
        self.sql("UPDATE segments SET leaves = ? WHERE chunk_set = ?", b"".join(leaves), f"trial/{chunk_set}")

    def record(self, number: int, kind: int) -> Signed:
        return Signed.FromString(
            self.one("SELECT signed FROM records WHERE round = ? AND kind = ?", number, kind)[0]
        )

    def put(self, number: int, kind: int, signed: Signed) -> None:
        raw = signed.SerializeToString()
        self.sql("UPDATE records SET signed = ? WHERE round = ? AND kind = ?", raw, number, kind)

    def forget_reports(self, number: int) -> None:
        """They name the close record, and nobody can sign others in the sites' names. In the coordinator's own state
        as well, if the round is the newest."""
        self.sql("DELETE FROM posts WHERE round = ? AND kind = 'report'", number, rows=4)
        state = json.loads(self.one("SELECT state FROM studies")[0])
        if state["round"] == number:
            self.sql("UPDATE studies SET state = ?", json.dumps({**state, "reports": {}}))

    def resign(
        self, number: int, kind: int, change: Callable[[Any], None], key: SigningKey | None = None
    ) -> None:
        """Change a record as its signer can."""
        label, message = {
            ROUND: (Label.ROUND_RECORD, round_pb2.RoundRecord),
            PLAN: (Label.PLAN_RECORD, round_pb2.PlanRecord),
            CLOSE: (Label.CLOSE_RECORD, round_pb2.CloseRecord),
        }[kind]
        signed = self.record(number, kind)
        record = message.FromString(signed.payload)
        change(record)
        self.put(number, kind, (key or self.key).sign(label, record, signed.signer))


def altered_sum(store: Store, number: int = 3) -> None:
    chunk = store.flip(f"{number}/sum", 1)
    store.set_leaf(f"{number}/sum", 1, chunk)
    new = root(store.leaves(f"{number}/sum"))
    store.resign(number, CLOSE, lambda close: setattr(close, "sum_root", new))


def altered_update(store: Store) -> None:
    store.set_leaf("2/update/bert/1", 0, store.flip("2/update/bert/1", 0))


def altered_record(store: Store) -> None:
    signed = store.record(2, PLAN)
    signed.payload = signed.payload[:-1] + bytes([signed.payload[-1] ^ 1])
    store.put(2, PLAN, signed)


def swapped_commits(store: Store) -> None:
    query = "SELECT signed FROM posts WHERE round = 2 AND kind = 'commit' AND site = ?"
    change = "UPDATE posts SET signed = ? WHERE round = 2 AND kind = 'commit' AND site = ?"
    (anna,), (bert,) = store.one(query, "anna"), store.one(query, "bert")
    store.sql(change, bert, "anna")
    store.sql(change, anna, "bert")


def swapped_updates(store: Store) -> None:
    for old, new in (("bert", "x"), ("cora", "bert"), ("x", "cora")):
        names = (f"trial/1/update/{new}/1", f"trial/1/update/{old}/1")
        store.sql("UPDATE segments SET chunk_set = ? WHERE chunk_set = ?", *names)


def smaller_u(store: Store, number: int = 3) -> None:
    store.resign(number, CLOSE, lambda close: close.contributions.pop())


def no_round(store: Store) -> None:
    store.sql("DELETE FROM records WHERE round = 2", rows=3)
    store.sql("DELETE FROM posts WHERE round = 2 AND kind != 'join'", rows=7)


def reordered(store: Store) -> None:
    for old, new in ((2, 99), (3, 2), (99, 3)):
        store.sql("UPDATE records SET round = ? WHERE round = ?", new, old, rows=3)


def forged_join(store: Store) -> None:
    def change(plan: Any) -> None:
        plan.joins[1].signature = plan.joins[0].signature

    store.resign(3, PLAN, change)


def forged_commit(store: Store) -> None:
    def change(close: Any) -> None:
        close.contributions[2].commit.signature = close.contributions[0].commit.signature

    store.resign(3, CLOSE, change)


def forged_manifest(store: Store) -> None:
    signed = Signed.FromString(store.one("SELECT signed FROM manifests")[0])
    manifest = study_pb2.Manifest.FromString(signed.payload)
    forged = RootKey.generate().sign(Label.MANIFEST, manifest)
    store.sql("UPDATE manifests SET signed = ?", forged.SerializeToString())


def flipped_post(store: Store, number: int, kind: str, site: str, part: str = "payload") -> None:
    """One bit of what a site posted, the plan and close records being as they were."""
    where = (number, kind, site)
    (raw,) = store.one("SELECT signed FROM posts WHERE round = ? AND kind = ? AND site = ?", *where)
    signed = Signed.FromString(raw)
    content = bytearray(getattr(signed, part))
    content[-1] ^= 1
    setattr(signed, part, bytes(content))
    change = "UPDATE posts SET signed = ? WHERE round = ? AND kind = ? AND site = ?"
    store.sql(change, signed.SerializeToString(), *where)


def removed_post(store: Store, number: int, kind: str, site: str) -> None:
    store.sql("DELETE FROM posts WHERE round = ? AND kind = ? AND site = ?", number, kind, site)


def join_of_another_round(store: Store) -> None:
    """A post that the site did sign, for round 1."""
    (signed,) = store.one("SELECT signed FROM posts WHERE round = 1 AND kind = 'join' AND site = 'bert'")
    store.sql("UPDATE posts SET signed = ? WHERE round = 2 AND kind = 'join' AND site = 'bert'", signed)


def other_join(store: Store, site: str = "cora") -> None:
    """A second, right join of the same site for the same round, as a hospital and the coordinator can make it."""
    plan = round_pb2.PlanRecord.FromString(store.record(2, PLAN).payload)
    index = next(at for at, join in enumerate(plan.joins) if join.signer.endswith(site))
    join = round_pb2.Join.FromString(plan.joins[index].payload)
    join.round_key = SealingKey.generate().public()
    signed = store.keys[site].sign(Label.JOIN, join, plan.joins[index].signer).SerializeToString()
    store.sql("UPDATE posts SET signed = ? WHERE round = 2 AND kind = 'join' AND site = ?", signed, site)
