"""Known answers of the quorum suite as files: a round that must be believed, and what must be refused with which
error. (Those of the arithmetic alone: ``test_quorum_arithmetic_vectors.py``.)

Every negative vector names the positive one that it was made from, and both run: a check that refuses everything
fails here as well. ``tests/vectors/quorum_v1/README.md`` describes the files.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cipherward.clock import SystemClock
from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.manifest_rules import check_manifest
from cipherward.crypto.quorum.key import QuorumKey
from cipherward.crypto.quorum.sealed import Answering
from cipherward.crypto.quorum_records import (
    check_answer_key,
    check_share,
    check_update_chunk,
    coverage,
    verify_acknowledgement,
    verify_sum_check,
)
from cipherward.crypto.records import (
    StudyTrust,
    verify_close,
    verify_commit,
    verify_plan,
    verify_round_record,
)
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import record_digest, verify
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side
from cipherward.crypto.transcript import transcript_next, transcript_start
from cipherward.database import open_database
from cipherward.errors import CipherwardError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import AnswerMessage, DataChunk, ShareMessage
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.daemon.quorum.acknowledging import dealing_of
from cipherward.site_agent.daemon.quorum.protection import plan_context
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.state.folder import MIGRATIONS

VECTORS = Path(__file__).parent.parent / "vectors"
FOLDER = VECTORS / "quorum_v1"
INDEX = json.loads((FOLDER / "vectors.json").read_text())
NEGATIVE = json.loads((FOLDER / "negative.json").read_text())
SETS, ROUND = INDEX["sets"], INDEX["round"]
SUITE, SITE = suite("quorum"), one_time_key_side("quorum")
MEMBERS, COHORT, LENGTH, ME = (ROUND[name] for name in ("members", "cohort", "length", "receiver"))
PLACE = MEMBERS.index(ME)
ROUND_KEY = SealingKey.from_bytes(bytes.fromhex(ROUND["receiver_secret"]))


def content(source):
    """A file's bytes; or a part of them, with bytes changed."""
    if isinstance(source, str):
        return (FOLDER / source).read_bytes()
    start = source.get("from", 0)
    found = bytearray((FOLDER / source["file"]).read_bytes()[start:][: source.get("size")])
    patch = bytes.fromhex(source.get("bytes", ""))
    at = source.get("at", 0)
    found[at : at + len(patch)] = patch
    return bytes(found)


def record(source):
    signed = Signed.FromString(content(source))
    if isinstance(source, dict) and source.get("flip_signature"):
        signed.signature = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]
    return signed


@cache
def trust():
    signed = record("records/manifest.bin")
    manifest = verify(signed, Label.MANIFEST, bytes.fromhex(ROUND["root_key"]), Manifest)
    check_manifest(manifest)
    return StudyTrust(manifest, record_digest(Label.MANIFEST, signed))


@cache
def plan_of(number):
    opening = record(f"records/round-{number}.bin")
    verify_round_record(opening, trust(), number)
    return check_plan(f"records/plan-{number}.bin", number)


def close_digest(source="records/close.bin"):
    return record_digest(Label.CLOSE_RECORD, record(source))


# One function for each thing that is checked; the vectors name them and give their arguments.


def check_plan(plan, round):
    opened = record_digest(Label.ROUND_RECORD, record(f"records/round-{round}.bin"))
    return verify_plan(record(plan), trust(), opened, round)


def check_commit(commit, plan, site):
    return verify_commit(record(commit), trust(), plan_of(plan), site)


def check_close(close):
    return verify_close(record(close), trust(), plan_of(1), bytes.fromhex(ROUND["transcript"]))


def check_a_share(sealed, commit, place, inclusion):
    """As a member does it: first whether the dealer stands for it, then open."""
    proof = [bytes.fromhex(node) for node in ROUND["inclusion"][inclusion]]
    message = ShareMessage(sealed=content(sealed), index=place, inclusion=proof, commit=record(commit))
    found = check_share(message, trust(), plan_of(1), ME)
    return dealing_of(trust(), plan_of(1), found).open(PLACE, ROUND_KEY, message.sealed)


def check_unsealing(sealed, commit, suite):
    """Only the opening."""
    dealing = dealing_of(trust(), plan_of(1), check_commit(commit, 1, "aachen"))
    return replace(dealing, suite=suite).open(PLACE, ROUND_KEY, content(sealed))


def check_an_answer(record, sealed, inclusion, close="records/close.bin"):
    proof = [bytes.fromhex(node) for node in ROUND["inclusion"][inclusion]]
    signed = Signed.FromString(content(record))
    message = AnswerMessage(record=signed, sealed_key=content(sealed), inclusion=proof)
    found = check_answer_key(message, trust(), plan_of(1), close_digest(close), ME)
    answering = Answering(
        trust().digest, plan_of(1).digest, found.close_digest, plan_of(1).members, found.site
    )
    return answering.open(PLACE, ROUND_KEY, found.encrypted_vector, message.sealed_key)


def check_an_update_chunk(site, index, data):
    close = check_close("records/close.bin")
    (contribution,) = (one for one in close.contributions if one.site == site)
    proof = merkle.prove([merkle.leaf_hash(chunk) for chunk in chunks_of(site)], index)
    chunk = DataChunk(index=index, data=content(data), inclusion=proof, site=site)
    check_update_chunk(chunk, close, contribution)


def check_upload_chunk(set, index, length, data):
    sites = len(MEMBERS) if length == LENGTH else SETS[set]["sites"]
    SUITE.parameters(set, None, sites).check_upload_chunk(content(data), index, length)


def check_key(members, changed=None):
    vectors = {MEMBERS.index(name) + 1: answer_of(name) for name in members}
    if changed:
        place = MEMBERS.index(changed) + 1
        vectors[place] = bytes(4) + vectors[place][4:]
    return next(SITE.combine(trust().params, vectors, ROUND["threshold"], len(COHORT)))


def check_sum(sum, members):
    data, sizes = content(sum), [trust().params.sum_chunk_bytes(index, LENGTH) for index in range(2)]
    with SITE.cipher(check_key(members).key, plan_context(trust(), plan_of(1))) as cipher:
        return cipher.open_sum([data[: sizes[0]], data[sizes[0] :]], LENGTH, len(COHORT))


def check_encryption(set, values):
    key = SITE.generate_key(SUITE.parameters(set, None, 4), b"")
    with SITE.cipher(key, b"a plan") as cipher:
        list(cipher.encrypt(np.array([float(value) for value in values])))


def check_parameters(set, bound, sites):
    return SUITE.parameters(set, float(bound), sites)


def check_a_sum_check(record, plan, site):
    close = ROUND["close_digest"] if plan == 1 else ROUND["second_close_digest"]
    signed = Signed.FromString(content(record))
    return verify_sum_check(signed, trust(), plan_of(plan), bytes.fromhex(close), 2, site)


def check_one_answer(first, then):
    """Both are good close records, so that only the journal stands between a member and a second answer."""
    for source in (first, then):
        check_close(source)
    with tempfile.TemporaryDirectory() as folder:
        journal = new_journal(folder)
        journal.write(1, answered_close=close_digest(first))
        journal.write(1, answered_close=close_digest(then))


def check_one_plan(first, then):
    for source in (first, then):
        check_plan(source, 1)
    with tempfile.TemporaryDirectory() as folder:
        journal = new_journal(folder)
        journal.accept_plan(1, record(first))
        journal.accept_plan(1, record(then))


def new_journal(folder):
    engine = open_database(f"sqlite:///{folder}/state.db", MIGRATIONS)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO studies (study, state, reason, data_set, transcript_round, transcript, model_round,"
            " model_digest) VALUES ('s', 'running', '', '', 0, '', 0, 'x')"
        )
    return Journal(engine, "s", SystemClock())


CHECKS = {
    "plan": check_plan,
    "commit": check_commit,
    "close": check_close,
    "share": check_a_share,
    "unsealing": check_unsealing,
    "answer": check_an_answer,
    "update chunk": check_an_update_chunk,
    "upload chunk": check_upload_chunk,
    "key of the sum": check_key,
    "sum": check_sum,
    "encryption": check_encryption,
    "parameters": check_parameters,
    "sum check": check_a_sum_check,
    "one answer a round": check_one_answer,
    "one plan a round": check_one_plan,
}
FAILURES = {
    "bad root", "bad signature", "re-sealed share", "wrong receiver", "truncated chunk", "replayed round",
    "second U", "t-1 shares", "overflow", "NaN", "wrong set", "duplicate member", "share not bound to root",
    "forged check",
}  # fmt: skip


@pytest.mark.parametrize("case", NEGATIVE, ids=lambda case: f"{case['failure']}-{case['check']}")
def test_negative_vectors_are_refused_and_what_they_were_made_from_is_not(case):
    check = CHECKS[case["check"]]
    check(**case["good"])
    with pytest.raises(CipherwardError) as caught:
        check(**case["good"] | case["bad"])
    assert (type(caught.value).__name__, caught.value.code) == (case["error"], case["code"])
    assert case["says"] in str(caught.value)


def test_there_is_a_negative_vector_for_every_failure():
    assert {case["failure"] for case in NEGATIVE} >= FAILURES
    assert {case["check"] for case in NEGATIVE} == CHECKS.keys()


def test_a_share_that_the_coordinator_sealed_would_open():
    """Only the root in the dealer's signed commit refuses it: HPKE does not say who sealed."""
    forged = check_unsealing("sealed/share-forged.bin", "records/commit-aachen.bin", "quorum:q32")
    assert forged == bytes(8192)


# The positive vectors.


def chunks_of(site):
    data = content(f"round-{site}.bin")
    return [data[:8192], data[8192:]]


@cache
def answer_of(site):
    return check_an_answer(
        f"records/answer-{site}.bin",
        f"sealed/answer-key-{site}-to-{ME}.bin",
        f"answer-key-{site}-to-{ME}",
    )


def test_the_round_from_manifest_to_opened_sum():
    """Everything that the receiver does, with the agent's own functions."""
    assert trust().digest.hex() == ROUND["manifest_digest"]
    assert plan_of(1).digest.hex() == ROUND["plan_digest"]
    assert (list(plan_of(1).members), plan_of(1).threshold) == (MEMBERS, ROUND["threshold"])
    assert transcript_start(trust().manifest.study, trust().digest).hex() == ROUND["transcript"]
    params, context = trust().params, plan_context(trust(), plan_of(1))
    shares = {}
    for site in MEMBERS:
        commit = check_commit(f"records/commit-{site}.bin", 1, site)
        update = np.array(ROUND["updates"][site], dtype=np.float32)
        of_update = digest(Label.FILE_DIGEST, update.astype("<f4").tobytes())
        named = (trust().digest, plan_of(1).digest, site.encode(), (1).to_bytes(4, "big"), of_update)
        randomness = bytes.fromhex(ROUND["randomness"][site])
        key = QuorumKey(params, randomness, framed(Label.ATTEMPT_KEY, *named))
        assert list(SITE.cipher(key, context).encrypt(update)) == chunks_of(site)
        assert merkle.root([merkle.leaf_hash(one) for one in chunks_of(site)]) == commit.ciphertext_root
        name = f"share-{site}-to-{ME}"
        shares[site] = check_a_share(f"sealed/{name}.bin", f"records/commit-{site}.bin", PLACE, name)
        assert shares[site] == key.deal(ROUND["threshold"], len(MEMBERS))[PLACE]
    said = verify_acknowledgement(record("records/acknowledgement.bin"), trust(), plan_of(1), ME)
    assert [item.site for item in said.opened] == MEMBERS

    close = check_close("records/close.bin")
    assert close_digest().hex() == ROUND["close_digest"]
    assert [item.site for item in close.contributions] == COHORT
    following = verify_round_record(record("records/round-2.bin"), trust(), 2)
    assert following.previous_transcript == transcript_next(close.previous_transcript, close_digest())
    assert answer_of(ME) == SITE.add_shares(params, [shares[site] for site in COHORT])

    checks = {}
    for site in COHORT[:3]:
        checks[site] = check_a_sum_check(f"records/check-{site}.bin", 1, site)
    assert coverage(checks, trust().manifest.colluders, close.sum_chunk_count).missing == ()
    del checks[ME]
    assert coverage(checks, trust().manifest.colluders, close.sum_chunk_count).missing == (0, 1)

    with SUITE.chunk_adder(params) as adder:
        total = [adder.add([chunks_of(site)[i] for site in COHORT], i, LENGTH) for i in range(2)]
    assert b"".join(total) == content("round-sum.bin")
    assert merkle.root([merkle.leaf_hash(chunk) for chunk in total]) == close.sum_root
    opened = check_sum("round-sum.bin", MEMBERS)
    assert (opened * params.scale).tolist() == ROUND["opened"]
    exact = np.sum([ROUND["updates"][site] for site in COHORT], axis=0)
    assert np.abs(opened - exact).max() <= params.error_bound(len(COHORT))


@pytest.mark.parametrize("wrong", MEMBERS)
def test_one_wrong_answer_of_five_is_passed_over(wrong):
    right = check_key(MEMBERS)
    assert right.wrong == ()
    found = check_key(MEMBERS, changed=wrong)
    assert found.wrong == (MEMBERS.index(wrong) + 1,)
    assert np.array_equal(found.key.polynomial(), right.key.polynomial())


def test_the_generator_reproduces_every_file_that_is_not_random(tmp_path):
    by_hand = {"README.md", "negative.json"}
    shutil.copytree(FOLDER / "sealed", tmp_path / "sealed")
    subprocess.run([sys.executable, "-B", VECTORS / "make_quorum_v1.py", tmp_path], check=True)
    made, stored = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path, FOLDER)
    )
    assert made.keys() == stored.keys() - by_hand
    assert [name for name in made if made[name] != stored[name]] == []
