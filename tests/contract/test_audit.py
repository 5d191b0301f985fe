"""``audit verify`` on what a real coordinator stored: nothing to find, until something is changed; then exactly that is
named, also where whoever changed it has the coordinator's own key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit_changed_store import (
    CLOSE,
    ROUND,
    Store,
    altered_record,
    altered_sum,
    altered_update,
    flipped_post,
    forged_commit,
    forged_join,
    forged_manifest,
    join_of_another_round,
    no_round,
    other_join,
    removed_post,
    reordered,
    smaller_u,
    swapped_commits,
    swapped_updates,
)

from cipherward.cli.app import main
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    sealed_root,
)
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.transcript import transcript_next
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1 import round_pb2, study_pb2

NAMES = ("anna", "bert", "cora", "dora")


def audit(capsys: Any, folder: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()  # the service's log
    status = main(["audit", "verify", "--dir", str(folder), "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["right"] else 1)
    return found


def wrong(found: dict[str, Any]) -> tuple[int | None, str | None, int | None, str]:
    (study,) = found["studies"]
    return tuple(study["wrong"][name] for name in ("round", "site", "chunk", "what"))


# --- a study, played over mTLS ---


def chunks_of(site: Any, seed: int) -> list[bytes]:
    params, generator = site.trust.params, np.random.default_rng(seed)
    sizes = [params.upload_chunk_bytes(i, site.length) // 4 for i in range(params.chunk_count(site.length))]
    return [
        generator.integers(0, params.modulus, size, dtype=np.uint64).astype("<u4").tobytes() for size in sizes
    ]


async def play(world: Any, sites: list[Any], number: int, unopenable: str = "") -> None:
    """A whole round; what ``unopenable`` dealt is left out of the sum."""

    async def bound(site: Any) -> dict[str, Any]:
        close = record_digest(Label.CLOSE_RECORD, await site.record(number, pb.RECORD_KIND_CLOSE))
        return {
            "manifest_digest": site.trust.digest,
            "close_digest": close,
            "round": number,
            "site": site.name,
        }

    async def join(site: Any) -> None:
        key = SealingKey.generate().public()
        record = await site.join_record(number, shared_key_digest=b"", round_key=key)
        await site.stub.PostJoin(pb.PostRequest(study="trial", record=record))

    async def contribute(site: Any) -> None:
        chunks, header = chunks_of(site, 10 * number + NAMES.index(site.name)), await site.header(number)
        shares = [os.urandom(SEALED_SHARE_BYTES) for _ in NAMES]
        messages = list(site.messages(header, chunks))
        messages += [pb.UploadMessage(share=pb.ShareMessage(sealed=s, index=i)) for i, s in enumerate(shares)]
        await site.send("Upload", messages)
        await site.commit(number, chunks, share_root=sealed_root(shares))

    async def acknowledge(site: Any) -> None:
        plan = record_digest(Label.PLAN_RECORD, await site.record(number, pb.RECORD_KIND_PLAN))
        attempts = {name: round_pb2.Attempt(site=name, attempt=1) for name in NAMES}
        record = round_pb2.Acknowledgement(
            manifest_digest=site.trust.digest,
            plan_digest=plan,
            round=number,
            site=site.name,
            opened=[attempt for name, attempt in attempts.items() if name != unopenable],
            unopenable=[attempts[unopenable]] if unopenable else [],
        )
        signed = site.sign(Label.ACKNOWLEDGEMENT, record)
        await site.stub.PostAcknowledgement(pb.PostRequest(study="trial", record=signed))

    async def answer(site: Any) -> None:
        plan = record_digest(Label.PLAN_RECORD, await site.record(number, pb.RECORD_KIND_PLAN))
        keys = [os.urandom(SEALED_KEY_BYTES) for _ in NAMES]
        vector = os.urandom(ENCRYPTED_VECTOR_BYTES)
        record = round_pb2.Answer(
            **await bound(site), plan_digest=plan, encrypted_vector=vector, key_root=sealed_root(keys)
        )
        signed = site.sign(Label.ANSWER, record)
        await site.stub.PostAnswer(pb.PostAnswerRequest(study="trial", record=signed, sealed_keys=keys))

    able = [site for site in sites if site.name != unopenable]
    for act, who, phase in (
        (join, sites, pb.PHASE_UPLOAD),
        (contribute, sites, pb.PHASE_ACKNOWLEDGE),
        (acknowledge, sites, pb.PHASE_UNSEAL),
        (answer, sites, pb.PHASE_RELEASE),
    ):
        await world.each(act(site) for site in who)
        await sites[0].until(lambda s, phase=phase: (s.round, s.phase) == (number, phase))
    await world.each(site.report(number, bytes([number]) * 32) for site in able)


@pytest.fixture
async def hub(world: Any) -> tuple[Path, Any]:
    """The folder of a coordinator that stopped: rounds 1 to 3 closed (dora left out of 2), round 4 aborted."""
    params = suite("quorum").parameters("q32", 4.0, len(NAMES))
    async with world.running(world.folder) as address:
        signed, trust = world.manifest(
            suite=study_pb2.SuiteEntry(name="quorum", parameters="q32", library=params.library, bound=4.0),
            deadlines=study_pb2.Deadlines(join_window=60, upload=60, acknowledge=60, unseal=60, verify=60),
            rounds=5,
            minimum_cohort=3,
            threshold=3,
            colluders=1,
            collective_verification=True,
        )
        operator, sites = world.operator(address), world.sites(address, trust)
        await operator.start(signed, world.weights)
        for number, unopenable in ((1, ""), (2, "dora"), (3, "")):
            await play(world, sites, number, unopenable)
        await sites[0].until(lambda s: s.round == 4)
        order = operator.order(trust.digest, study_pb2.OperatorCommand.ACTION_ABORT, "enough")
        await operator.stub.AbortStudy(order)
    return world.folder, world


# --- ways to change it ---


CHANGES: dict[str, tuple[Callable[[Store], object], tuple[int | None, str | None, int | None, str]]] = {
    "a byte of an update": (
        lambda s: s.flip("2/update/bert/1", 1),
        (2, "bert", 1, "the stored chunk of its update is not the one that was signed for"),
    ),
    "a byte of an update and its digest": (
        altered_update,
        (2, "bert", None, "the stored digests of its update do not have the root that it committed"),
    ),
    "a byte of the sum": (
        lambda s: s.flip("3/sum", 2),
        (3, None, 2, "the stored chunk of the sum is not the one"),
    ),
    "a coordinate of the sum, signed": (
        lambda s: (altered_sum(s), s.forget_reports(3)),
        (3, None, 1, "the sum's chunk is not the sum of the updates"),
    ),
    "a byte of a plan record": (altered_record, (2, None, None, "the signature on a plan record")),
    "two sites' commits swapped": (swapped_commits, (2, "anna", None, "the signature on a commit")),
    "two sites' updates swapped": (swapped_updates, (1, "bert", None, "the stored digests of its update")),
    "a site left out of U, signed": (
        lambda s: (smaller_u(s), s.forget_reports(3)),
        (3, None, 0, "the sum's chunk is not the sum of the updates"),
    ),
    "a round removed": (
        no_round,
        (2, None, None, "sites joined it, and its round record is missing"),
    ),
    "rounds reordered": (reordered, (2, None, None, "a round record is of round 3, not 2")),
    "a close record signed again, the reports left": (
        smaller_u,
        (3, "anna", None, "its model report is about another close record than this one"),
    ),
    "a close record forged": (
        lambda s: s.resign(3, CLOSE, lambda close: None, SigningKey.generate()),
        (3, None, None, "the signature on a close record"),
    ),
    "a join forged, in a signed plan": (forged_join, (3, "bert", None, "the signature on a join")),
    "a commit forged, in a signed close record": (
        forged_commit,
        (3, "cora", None, "the signature on a commit"),
    ),
    "a manifest forged": (forged_manifest, (None, None, None, "the signature on a manifest")),
    "a round from another model, signed": (
        lambda s: s.resign(2, ROUND, lambda opening: setattr(opening, "model_digest", bytes(32))),
        (
            2,
            None,
            None,
            "it starts from a model that neither the round before started from nor its sites reported",
        ),
    ),
    "a round upon another history, signed": (
        lambda s: s.resign(4, ROUND, lambda opening: setattr(opening, "previous_transcript", bytes(32))),
        (4, None, None, "its round record does not continue the transcript"),
    ),
    "a blob cut short": (
        lambda s: os.truncate(s.blob("1/update/dora/1"), s.blob("1/update/dora/1").stat().st_size - 1),
        (1, "dora", 0, "is cut short"),
    ),
    "a blob removed": (lambda s: s.blob("3/update/cora/1").unlink(), (3, "cora", 0, "cannot read")),
    "an update forgotten": (
        lambda s: s.sql("DELETE FROM segments WHERE chunk_set = 'trial/3/update/cora/1'"),
        (3, "cora", None, "its update is not stored, and others of the round are"),
    ),
    "a commit forgotten": (
        lambda s: s.sql("DELETE FROM posts WHERE round = 1 AND kind = 'commit' AND site = 'dora'"),
        (1, "dora", None, "its commit is missing from the store"),
    ),
    "a stored join changed": (
        lambda s: flipped_post(s, 2, "join", "cora"),
        (2, "cora", None, "the signature on a join"),
    ),
    "the signature of a stored join": (
        lambda s: flipped_post(s, 3, "join", "anna", "signature"),
        (3, "anna", None, "the signature on a join"),
    ),
    "another round's join": (join_of_another_round, (2, "bert", None, "a join is of round 1, not 2")),
    "another join of the site, signed": (
        other_join,
        (2, "cora", None, "the plan record counts another join than the one it posted"),
    ),
    "a join forgotten": (
        lambda s: removed_post(s, 2, "join", "bert"),
        (2, "bert", None, "its join is in the plan record and missing from the store"),
    ),
    "a stored commit changed": (
        lambda s: flipped_post(s, 1, "commit", "dora"),
        (1, "dora", None, "the signature on a commit"),
    ),
    "a stored commit outside U changed": (
        lambda s: flipped_post(s, 2, "commit", "dora"),
        (2, "dora", None, "the signature on a commit"),
    ),
    "a stored report changed": (
        lambda s: flipped_post(s, 3, "report", "bert"),
        (3, "bert", None, "the signature on a model report"),
    ),
    "the reports forgotten that the next round rests on": (
        lambda s: s.sql("DELETE FROM posts WHERE round = 3 AND kind = 'report' AND site != 'anna'", rows=3),
        (4, None, None, "it starts from a model that neither"),
    ),
    "a post of no known kind": (
        lambda s: s.sql(
            "UPDATE posts SET kind = 'note' WHERE round = 1 AND kind = 'report' AND site = 'bert'"
        ),
        (1, None, None, "the store has posts of an unknown kind 'note'"),
    ),
    "the newest record forgotten": (
        lambda s: s.sql("DELETE FROM records WHERE round = 4 AND kind = 3"),
        (3, None, None, "the head of the transcript is not the hash of the records up to this round"),
    ),
    "the head of the transcript": (
        lambda s: s.sql("UPDATE studies SET transcript = zeroblob(32)"),
        (4, None, None, "the head of the transcript is not the hash of the records up to this round"),
    ),
}


async def test_what_was_changed_is_named(hub: tuple[Path, Any], tmp_path: Path, capsys: Any) -> None:
    folder, world = hub
    found = audit(capsys, folder)
    (study,) = found["studies"]
    assert (study["closed_rounds"], study["aborted_rounds"], study["joins"], study["commits"]) == (
        3,
        1,
        12,
        12,
    )
    assert study["sums_added_up"] == [1, 2, 3] and study["sums_not_added_up"] == []
    assert study["left_out"] == [{"round": 2, "site": "dora"}] and study["transcript_round"] == 4
    keys = {member.identity.name: member.signing_key for member in world.members}
    for what, (change, expected) in CHANGES.items():
        copy = tmp_path / "tampered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(Store(copy, world.coordinator.signing_key, keys))
        *place, said = wrong(audit(capsys, copy))
        assert (*place,) == expected[:3] and expected[3] in said, (what, place, said)


async def test_whose_anchor_it_is(hub: tuple[Path, Any], tmp_path: Path, capsys: Any) -> None:
    folder, world = hub
    fingerprint = world.consortium.anchor.fingerprint.hex()
    assert audit(capsys, folder, "--fingerprint", fingerprint)["anchor_compared"] is True
    assert main(["audit", "verify", "--dir", str(folder), "--fingerprint", "00" * 32]) == 1
    assert "the fingerprint does not belong to this anchor" in capsys.readouterr().err
    other = tmp_path / "other.pem"
    other.write_bytes(RootKey.generate().make_anchor("heart", 1.0).to_text())
    place = wrong(audit(capsys, folder, "--anchor", str(other)))
    assert place[:3] == (None, None, None) and "the signature on a manifest" in place[3]


async def test_rounds_that_are_no_longer_kept_are_said(
    hub: tuple[Path, Any], world: Any, capsys: Any
) -> None:
    folder, _ = hub
    async with world.running(folder, keep_rounds=2):
        # While the service runs. Round 4 counts among the ended rounds.
        (study,) = audit(capsys, folder)["studies"]
    reason = "its updates are no longer kept"
    assert (study["right"], study["sums_added_up"]) == (True, [3])
    assert study["sums_not_added_up"] == [{"rounds": [1, 2], "reason": reason}]
    assert main(["audit", "verify", "--dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"not checked: the sum of rounds 1 to 2; {reason}" in shown
    assert "sums added up again: round 3" in shown and "left out of the sum of round 2: dora" in shown
    assert main(["audit", "verify", "--dir", str(folder), "--study", "other"]) == 2


@pytest.mark.slow
async def test_the_shared_key_suite(world: Any, updates: Any, tmp_path: Path, capsys: Any) -> None:
    async with world.running(world.folder, keep_rounds=2) as address:
        sites = await world.started(address)
        for number in (1, 2):
            await world.each(site.join(number) for site in sites)
            await sites[0].until(lambda s, number=number: s.round == number and s.plan_digest)
            await world.each(site.contribute(number, updates[i][1]) for i, site in enumerate(sites))
            await sites[0].until(lambda s, number=number: s.round == number and s.close_digest)
            await world.each(site.report(number, bytes([number]) * 32) for site in sites)
    (study,) = audit(capsys, world.folder)["studies"]
    assert study["right"] and study["sums_added_up"] == [1, 2]
    assert study["not_reported"] == []
    # What the coordinator's own state names is missed; of older rounds that there is none is said.
    for kind in ("join", "commit", "report"):
        spoiled = tmp_path / f"without-{kind}"
        shutil.copytree(world.folder, spoiled)
        removed_post(Store(spoiled, world.coordinator.signing_key), 2, kind, "bert")
        assert wrong(audit(capsys, spoiled))[:2] == (2, "bert"), kind
    spoiled = tmp_path / "silent"
    shutil.copytree(world.folder, spoiled)
    removed_post(Store(spoiled, world.coordinator.signing_key), 1, "report", "cora")
    (study,) = audit(capsys, spoiled)["studies"]
    assert study["right"] and study["not_reported"] == [{"round": 1, "site": "cora"}]
    main(["audit", "verify", "--dir", str(spoiled)])
    assert "no model report of round 1: cora" in capsys.readouterr().out
    # The coordinator itself changes the last round, and everything behind it; the sites' reports it cannot.
    for change, expected in (
        (altered_sum, (2, None, 1, "the sum's chunk is not the sum of the updates")),
        (smaller_u, (2, "dora", None, "it committed in time and was left out of the sum")),
    ):
        spoiled = tmp_path / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(world.folder, spoiled)
        store = Store(spoiled, world.coordinator.signing_key)
        change(store, 2)
        assert wrong(audit(capsys, spoiled))[0] == 2
        opening = round_pb2.RoundRecord.FromString(store.record(2, ROUND).payload)
        closed = record_digest(Label.CLOSE_RECORD, store.record(2, CLOSE))
        store.sql("UPDATE studies SET transcript = ?", transcript_next(opening.previous_transcript, closed))
        place = wrong(audit(capsys, spoiled))
        assert place == (2, "anna", None, "its model report is about another close record than this one")
        store.forget_reports(2)
        *place, said = wrong(audit(capsys, spoiled))
        assert (*place,) == expected[:3] and expected[3] in said
    # A machine that has a site's key must not add up.
    (tmp_path / "site" / "shared-keys").mkdir(parents=True)
    (tmp_path / "site" / "shared-keys" / "00.key").write_bytes(b"key")
    (study,) = audit(capsys, world.folder)["studies"]
    assert study["right"] and study["sums_added_up"] == []
    (left,) = study["sums_not_added_up"]
    assert left["rounds"] == [1, 2] and "this machine has a shared key" in left["reason"]
