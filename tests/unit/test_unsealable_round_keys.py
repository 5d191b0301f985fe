"""A site that joins with a key to which nobody can seal would stop every site that deals it a share. Nobody plans with
it: the coordinator and the sites apply the same rule."""

from __future__ import annotations

import os

import pytest

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.records import StudyTrust, verify_join
from cipherward.crypto.sealing import SealingKey, seal
from cipherward.crypto.signing import SigningKey
from cipherward.crypto.suites.registry import suite
from cipherward.errors import FormatError, VerificationError
from cipherward.proto.v1.round_pb2 import Join
from cipherward.proto.v1.study_pb2 import Manifest, RosterSite, SuiteEntry

GOOD = SealingKey.generate().public()
P = 2**255 - 19
# RFC 7748, section 6.1, and the other small orders (https://cr.yp.to/ecdh.html#validate), in reduced and other forms.
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
POINTS = [point.to_bytes(32, "little") for point in (0, 1, ORDER_8, P - 1, P, P + 1)]
BAD = [
    *(GOOD[:1184] + point for point in POINTS),
    b"\xff" * 1184 + GOOD[1184:],
    os.urandom(1184) + GOOD[1184:],
]


@pytest.mark.parametrize("key", BAD)
def test_nothing_is_sealed_to_it_and_the_error_is_ours(key: bytes) -> None:
    seal(GOOD, b"share", Label.SEAL_SHARE)
    with pytest.raises(FormatError, match="not a valid ML-KEM-768 and X25519 key"):
        seal(key, b"share", Label.SEAL_SHARE)


@pytest.mark.parametrize("key", BAD)
def test_no_plan_contains_it(key: bytes) -> None:
    signer, params = SigningKey.generate(), suite("quorum").parameters("q32")
    manifest = Manifest(
        study="heart",
        roster=[RosterSite(name="anna", signing_key=signer.public())],
        suite=SuiteEntry(name="quorum", parameters="q32", library=params.library),
    )
    trust, opened = StudyTrust(manifest, digest(Label.MANIFEST)), digest(Label.ROUND_RECORD)
    join = Join(
        manifest_digest=trust.digest, round_record_digest=opened, round=1, site="anna", library=params.library
    )

    def check(round_key: bytes) -> Join:
        join.round_key = round_key
        return verify_join(signer.sign(Label.JOIN, join, "spiffe://c/site/anna"), trust, opened, 1, "anna")

    check(GOOD)
    with pytest.raises(VerificationError, match="round key to which nothing can be sealed"):
        check(key)
