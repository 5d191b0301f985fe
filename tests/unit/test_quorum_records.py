"""Each rule by which shares, acknowledgements, answers and sum checks are believed: the honest one passes, one
change at a time is refused. And which sites check which chunk of a sum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit_quorum_world import CHUNKS, World, d

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import colluders_withstood, effective_threshold, least_threshold
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    SHARE_BYTES,
    check_answer_key,
    check_share,
    check_update_chunk,
    checkers,
    coverage,
    sealed_root,
    verify_acknowledgement,
    verify_answer,
    verify_sum_check,
)
from cipherward.crypto.records import verify_close
from cipherward.crypto.sealing import SealingKey, seal
from cipherward.crypto.signing import SigningKey
from cipherward.errors import FormatError, VerificationError
from cipherward.proto.v1.coordinator_pb2 import AnswerMessage, DataChunk, ShareMessage
from cipherward.proto.v1.round_pb2 import (
    Acknowledgement,
    Answer,
    CloseRecord,
    SumCheck,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def field(**values: object) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return change


def test_sizes_are_those_of_real_seals() -> None:
    key = SealingKey.generate()
    assert len(seal(key.public(), bytes(SHARE_BYTES), Label.SEAL_SHARE)) == SEALED_SHARE_BYTES
    assert len(seal(key.public(), bytes(32), Label.SEAL_ANSWER)) == SEALED_KEY_BYTES


@pytest.mark.parametrize(
    ("n", "t", "withstood", "dropouts"),
    [(3, 3, 1, 0), (4, 3, 1, 1), (5, 4, 2, 1), (7, 5, 2, 2), (10, 7, 3, 3), (32, 22, 11, 10)],
)
def test_the_designs_table(n: int, t: int, withstood: int, dropouts: int) -> None:
    assert least_threshold(n) == effective_threshold(0, n) == effective_threshold(t, n) == t
    assert effective_threshold(t + 1, n) == t + 1
    assert (colluders_withstood(t, n), n - t) == (withstood, dropouts)


@given(st.integers(3, 1000), st.data())
def test_two_sets_never_both_find_t_answers(n: int, data: st.DataObject) -> None:
    """Each honest member answers one U: 2 t answers need more than c members to answer twice."""
    t = effective_threshold(data.draw(st.integers(0, n)), n)
    assert 2 * t > n
    assert 2 * t - n > colluders_withstood(t, n), "colluders who answer twice are too few for two sets"


# The plan and the close record


def test_a_plan_knows_its_threshold_and_places(world: World) -> None:
    assert world.plan.threshold == 5
    assert world.plan.members == world.sites
    assert [world.plan.places[name] for name in world.sites] == [0, 1, 2, 3, 4]
    assert world.verified_plan(world.roster).threshold == 5
    with pytest.raises(VerificationError, match="minimum cohort"):
        world.verified_plan(world.sites[:4])


def test_a_plan_below_its_threshold_is_refused_whatever_the_manifest_says() -> None:
    """Such manifests are refused themselves; who relies on the rule checks it again."""
    for numbers, text in (((6, 5, 1), "the threshold is 6"), ((4, 4, 3), "colluding")):
        with pytest.raises(VerificationError, match=text):
            World(*numbers)


def test_a_plan_refuses_round_keys_of_a_wrong_size_or_used_twice(world: World) -> None:
    honest = dict(world.round_keys)
    try:
        for key in (b"", bytes(1215), bytes(1217), honest["adam"]):
            world.round_keys["cora"] = key
            with pytest.raises(VerificationError, match="round key"):
                world.verified_plan(world.sites)
    finally:
        world.round_keys = honest


def test_the_close_record_of_a_quorum(world: World) -> None:
    def check(record: CloseRecord) -> CloseRecord:
        return verify_close(world.signed_close(record), world.trust, world.plan, world.transcript)

    check(world.close_record())
    with pytest.raises(VerificationError, match="minimum cohort"):
        check(world.close_record(world.sites[:4]))
    for change in (
        lambda r: setattr(r.contributions[0], "share_root", d("other shares")),
        lambda r: setattr(r.contributions[0], "share_root", b""),
        lambda r: r.contributions[1].CopyFrom(r.contributions[0]),
    ):
        record = world.close_record()
        change(record)
        with pytest.raises(VerificationError):
            check(record)
    record, bare = world.close_record(), world.commit("adam")
    bare.share_root = b""
    record.contributions[0].commit.CopyFrom(world.sign(Label.COMMIT, bare, "adam"))
    record.contributions[0].share_root = b""
    with pytest.raises(VerificationError, match="share root"):
        check(record)


# Shares


def test_a_share_is_believed_by_its_receiver_only(world: World) -> None:
    for dealer in world.sites:
        for receiver in world.sites:
            assert (
                check_share(world.share(dealer, receiver), world.trust, world.plan, receiver).site == dealer
            )
    message = world.share("adam", "dora")
    for other in ("adam", "cora", "emil", "gina", "bert", "mallory"):
        with pytest.raises(VerificationError):
            check_share(message, world.trust, world.plan, other)


SHARE_FORGERIES: dict[str, Callable[[World, ShareMessage], None]] = {
    "re-sealed by another": lambda w, m: setattr(m, "sealed", os.urandom(SEALED_SHARE_BYTES)),
    "one bit flipped": lambda w, m: setattr(m, "sealed", bytes([m.sealed[0] ^ 1]) + m.sealed[1:]),
    "another receiver's": lambda w, m: m.CopyFrom(w.share("adam", "cora")),
    "another receiver's, index changed": lambda w, m: setattr(m, "sealed", w.shares["adam"][1]),
    "another dealer's": lambda w, m: setattr(m, "sealed", w.shares["cora"][2]),
    "under another dealer's commit": lambda w, m: m.commit.CopyFrom(w.share("cora", "dora").commit),
    "index of another": lambda w, m: setattr(m, "index", 1),
    "too short": lambda w, m: setattr(m, "sealed", m.sealed[:-1]),
    "too long": lambda w, m: setattr(m, "sealed", m.sealed + b"x"),
    "no proof": lambda w, m: m.ClearField("inclusion"),
    "proof too long": lambda w, m: m.inclusion.append(bytes(32)),
    "no commit": lambda w, m: m.ClearField("commit"),
    "commit signed by another": lambda w, m: m.commit.CopyFrom(
        w.sign(Label.COMMIT, w.commit("adam"), "adam", w.keys["cora"])
    ),
    "commit of a site outside J": lambda w, m: m.commit.CopyFrom(
        w.sign(Label.COMMIT, renamed(w.commit("adam"), "bert"), "bert")
    ),
    "commit in another's name": lambda w, m: m.commit.CopyFrom(
        w.sign(Label.COMMIT, w.commit("adam"), "cora")
    ),
    "commit of another round": lambda w, m: m.commit.CopyFrom(
        w.sign(Label.COMMIT, changed(w.commit("adam"), round=2), "adam")
    ),
    "commit of another plan": lambda w, m: m.commit.CopyFrom(
        w.sign(Label.COMMIT, changed(w.commit("adam"), plan_digest=d("x")), "adam")
    ),
}


def changed(message: Any, **values: object) -> Any:
    field(**values)(message)
    return message


def renamed(message: Any, site: str) -> Any:
    return changed(message, site=site)


@pytest.mark.parametrize("forgery", SHARE_FORGERIES.values(), ids=SHARE_FORGERIES.keys())
def test_forged_shares_are_refused(world: World, forgery: Callable[[World, ShareMessage], None]) -> None:
    message = world.share("adam", "dora")
    check_share(message, world.trust, world.plan, "dora")
    forgery(world, message)
    with pytest.raises(VerificationError):
        check_share(message, world.trust, world.plan, "dora")


def test_a_share_has_one_size_even_if_its_dealer_signed_for_another(world: World) -> None:
    short = [os.urandom(SEALED_SHARE_BYTES - 1) for _ in world.sites]
    leaves = [merkle.leaf_hash(one) for one in short]
    commit = changed(world.commit("adam"), share_root=sealed_root(short))
    message = ShareMessage(
        sealed=short[2], index=2, inclusion=merkle.prove(leaves, 2),
        commit=world.sign(Label.COMMIT, commit, "adam"),
    )  # fmt: skip
    with pytest.raises(FormatError, match="must have"):
        check_share(message, world.trust, world.plan, "dora")


# Acknowledgements


@pytest.mark.parametrize(
    "change",
    [field(site="cora"), field(round=2), field(plan_digest=d("x")), field(manifest_digest=d("x")),
     lambda r: r.opened.add(site="adam", attempt=1),
     lambda r: r.opened.add(site="bert", attempt=1),
     lambda r: r.opened.add(site="", attempt=1),
     lambda r: r.unopenable.add(site="cora", attempt=1),
     lambda r: r.unopenable.add(site="gina", attempt=1),
     lambda r: setattr(r.opened[0], "attempt", 0),
     lambda r: r.opened.reverse()],
)  # fmt: skip
def test_acknowledgement(world: World, change: Callable[[Acknowledgement], None]) -> None:
    record = world.acknowledgement("dora", bad="emil")

    def check(key: SigningKey | None = None, site: str = "dora") -> Acknowledgement:
        signed = world.sign(Label.ACKNOWLEDGEMENT, record, site, key)
        return verify_acknowledgement(signed, world.trust, world.plan, site)

    assert [item.site for item in check().unopenable] == ["emil"]
    with pytest.raises(VerificationError):
        check(world.keys["cora"])
    change(record)
    with pytest.raises(VerificationError):
        check()


def test_an_acknowledgement_of_a_site_outside_the_plan(world: World) -> None:
    signed = world.sign(Label.ACKNOWLEDGEMENT, world.acknowledgement("bert"), "bert")
    with pytest.raises(VerificationError, match="not in the plan"):
        verify_acknowledgement(signed, world.trust, world.plan, "bert")


# Answers


@pytest.mark.parametrize(
    "change",
    [field(site="cora"), field(round=2), field(plan_digest=d("x")), field(manifest_digest=d("x")),
     field(close_digest=d("another U")), field(key_root=b""), field(encrypted_vector=b""),
     field(encrypted_vector=bytes(ENCRYPTED_VECTOR_BYTES + 1))],
)  # fmt: skip
def test_answer(world: World, change: Callable[[Answer], None]) -> None:
    record = world.answer("dora")

    def check(label: Label = Label.ANSWER, site: str = "dora") -> Answer:
        signed = world.sign(label, record, site)
        return verify_answer(signed, world.trust, world.plan, world.close_digest, site)

    assert check() == record
    with pytest.raises(VerificationError):
        check(Label.SUM_CHECK)
    with pytest.raises(VerificationError):
        check(site="cora")
    change(record)
    with pytest.raises(VerificationError):
        check()


def test_an_answers_key_is_believed_by_its_receiver_only(world: World) -> None:
    def check(message: AnswerMessage, receiver: str) -> Answer:
        return check_answer_key(message, world.trust, world.plan, world.close_digest, receiver)

    for site in world.sites:
        for receiver in world.sites:
            assert check(world.answer_message(site, receiver), receiver).site == site
    message = world.answer_message("adam", "dora")
    for other in ("adam", "cora", "emil", "gina", "bert", "mallory"):
        with pytest.raises(VerificationError):
            check(message, other)
    forgeries: list[Callable[[AnswerMessage], None]] = [
        field(sealed_key=os.urandom(SEALED_KEY_BYTES)),
        field(sealed_key=world.sealed_keys["cora"][2]),
        lambda m: m.ClearField("inclusion"),
        lambda m: m.record.CopyFrom(world.answer_message("cora", "dora").record),
        lambda m: setattr(m.record, "signer", "spiffe://c/site/cora"),
    ]
    for forge in forgeries:
        message = world.answer_message("adam", "dora")
        forge(message)
        with pytest.raises(VerificationError):
            check(message, "dora")
    message.sealed_key = bytes(SEALED_KEY_BYTES - 1)
    with pytest.raises(FormatError, match="sealed key"):
        check(message, "dora")
    with pytest.raises(VerificationError, match="another close record"):
        check_answer_key(
            world.answer_message("adam", "dora"), world.trust, world.plan, d("another U"), "dora"
        )


# Collective verification


def verified(world: World, record: SumCheck, site: str) -> SumCheck:
    signed = world.sign(Label.SUM_CHECK, record, site)
    return verify_sum_check(signed, world.trust, world.plan, world.close_digest, 5, site)


@pytest.mark.parametrize(
    "change",
    [field(site="cora"), field(round=2), field(close_digest=d("x")), field(manifest_digest=d("x")),
     lambda r: r.right.append(5), lambda r: r.right.append(4), lambda r: r.right.append(2),
     lambda r: r.wrong.append(1), lambda r: r.wrong.append(4), lambda r: r.wrong.extend([2, 2**32 - 1])],
)  # fmt: skip
def test_sum_check(world: World, change: Callable[[SumCheck], None]) -> None:
    record = world.sum_check("dora", [0, 2, 4], [1])
    assert verified(world, record, "dora") == record
    change(record)
    with pytest.raises(VerificationError):
        verified(world, record, "dora")


def test_an_empty_sum_check_is_one_and_a_strangers_is_none(world: World) -> None:
    verified(world, world.sum_check("dora", []), "dora")
    with pytest.raises(VerificationError, match="not in the plan"):
        verified(world, world.sum_check("bert", [0]), "bert")


def test_a_chunk_stands_under_its_sites_commit(world: World) -> None:
    close = world.close_record()
    item = close.contributions[1]
    leaves = [merkle.leaf_hash(one) for one in CHUNKS]

    def chunk(place: int, **changes: Any) -> DataChunk:
        values = {"index": place, "data": CHUNKS[place], "site": "cora"}
        return DataChunk(**{**values, **changes}, inclusion=merkle.prove(leaves, place))

    for index in range(len(CHUNKS)):
        check_update_chunk(chunk(index), close, item)
    for wrong in (chunk(0, data=CHUNKS[1]), chunk(0, index=1), chunk(0, site="adam"), chunk(0, index=99)):
        with pytest.raises(VerificationError):
            check_update_chunk(wrong, close, item)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_checkers_are_a_permutation_that_follows_from_the_close_record(
    close: bytes, count: int, chunk: int
) -> None:
    members = [f"site-{i}" for i in range(count)]
    order = checkers(close, members, chunk)
    assert sorted(order) == members
    assert checkers(close, reversed(members), chunk) == order, "the same for everybody"
    without = [site for site in members if site != order[0]]
    assert checkers(close, without, chunk) == order[1:], "an absent one is replaced by the next"


def test_checkers_share_the_work() -> None:
    members = [f"site-{i}" for i in range(8)]
    firsts = Counter(site for chunk in range(800) for site in checkers(bytes(32), members, chunk)[:2])
    assert all(140 < count < 260 for count in firsts.values()), firsts
    assert checkers(bytes(32), members, 0) != checkers(b"\x01" * 32, members, 0)


@given(st.data())
def test_coverage_counts_distinct_members(data: st.DataObject) -> None:
    chunks, colluders = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 3))
    names = [f"site-{i}" for i in range(5)]
    said = st.dictionaries(st.integers(0, chunks - 1), st.booleans())
    verdicts = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, said)))
    checks = {
        name: SumCheck(
            right=sorted(i for i, right in one.items() if right),
            wrong=sorted(i for i, right in one.items() if not right),
        )
        for name, one in verdicts.items()
    }
    found = coverage(checks, colluders, chunks)
    for index in range(chunks):
        right = sum(one.get(index) is True for one in verdicts.values())
        assert (index in found.missing) == (right < colluders + 1)
        wrong = tuple(name for name, one in verdicts.items() if one.get(index) is False)
        assert found.wrong.get(index, ()) == wrong
    assert coverage({}, colluders, chunks).missing == tuple(range(chunks))
