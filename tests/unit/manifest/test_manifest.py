"""What a site refuses again, although the root signed it; signatures; its own entry."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import (
    manifest_digest,
    require_member,
    verify_manifest,
)
from cipherward.crypto.pki.armour import Kind, armour_signed, unarmour_signed
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.signing import SigningKey
from cipherward.crypto.suites.registry import suite
from cipherward.errors import IdentityError, VerificationError
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import PlainTraining


def _add(manifest, **fields):
    """One more site, with keys of its own but for ``fields``."""
    entry = manifest.roster.add()
    entry.CopyFrom(manifest.roster[0])
    entry.name, entry.signing_key, entry.tls_key_digest = "basel", b"s" * 32, b"t" * 32
    entry.sealing_key = b"k" * 1216
    for name, value in fields.items():
        setattr(entry, name, value)


SIGNED_NONSENSE = {
    "empty roster": lambda m: m.ClearField("roster"),
    "cohort of one": lambda m: setattr(m, "minimum_cohort", 1),
    "no cohort": lambda m: setattr(m, "minimum_cohort", 0),
    "cohort beyond roster": lambda m: setattr(m, "minimum_cohort", 5),
    "sybil by signing key": lambda m: _add(m, signing_key=m.roster[0].signing_key),
    "sybil by sealing key": lambda m: _add(m, sealing_key=m.roster[0].sealing_key),
    "sybil by tls key": lambda m: _add(m, tls_key_digest=m.roster[0].tls_key_digest),
    "same name": lambda m: _add(m, name="cleveland"),
    "name with a slash": lambda m: _add(m, name="../etc"),
    "coordinator with a site's key": lambda m: setattr(m.coordinator, "signing_key", m.roster[0].signing_key),
    "coordinator with a site's tls key": lambda m: setattr(
        m.coordinator, "tls_key_digest", m.roster[0].tls_key_digest
    ),
    "coordinator without key": lambda m: setattr(m.coordinator, "signing_key", b""),
    "no coordinator": lambda m: m.ClearField("coordinator"),
    "short sealing key": lambda m: _add(m, sealing_key=b"x"),
    "weight zero": lambda m: setattr(m.roster[0], "weight", 0.0),
    "weight nan": lambda m: setattr(m.roster[0], "weight", float("nan")),
    "weight infinite": lambda m: setattr(m.roster[0], "weight", float("inf")),
    "weight negative": lambda m: setattr(m.roster[0], "weight", -1.0),
    "divisor zero": lambda m: setattr(m.roster[0], "batch_divisor", 0.0),
    "sigma zero": lambda m: setattr(m.dp, "noise_multiplier", 0.0),
    "sigma nan": lambda m: setattr(m.dp, "noise_multiplier", float("nan")),
    "sigma negative": lambda m: setattr(m.dp, "noise_multiplier", -1.0),
    "C infinite": lambda m: setattr(m.dp, "clipping_norm", float("inf")),
    "q nan": lambda m: setattr(m.dp, "sampling_rate", float("nan")),
    "q above one": lambda m: setattr(m.dp, "sampling_rate", 1.5),
    "delta one": lambda m: setattr(m.dp, "delta", 1.0),
    "delta nan": lambda m: setattr(m.dp, "delta", float("nan")),
    "no steps": lambda m: setattr(m.dp, "steps", 0),
    "no metrics policy": lambda m: m.dp.ClearField("metrics"),
    "dp missing": lambda m: m.ClearField("dp"),
    "dp off but present": lambda m: setattr(m, "dp_disabled", True),
    "dp on and plain": lambda m: m.plain.CopyFrom(PlainTraining(steps=1)),
    "no rounds": lambda m: setattr(m, "rounds", 0),
    "too many rounds": lambda m: setattr(m, "rounds", 2**31),
    "version zero": lambda m: setattr(m, "version", 0),
    "version 2 without predecessor": lambda m: setattr(m, "version", 2),
    "version 1 with predecessor": lambda m: setattr(m, "previous_digest", bytes(32)),
    "version 1 from round 2": lambda m: setattr(m, "first_round", 2),
    "first round 0": lambda m: setattr(m, "first_round", 0),
    "unknown suite": lambda m: setattr(m.suite, "name", "plaintext"),
    "unknown parameters": lambda m: setattr(m.suite, "parameters", "tiny"),
    "no library": lambda m: setattr(m.suite, "library", ""),
    "bound nan": lambda m: setattr(m.suite, "bound", float("nan")),
    "bound zero": lambda m: setattr(m.suite, "bound", 0.0),
    "bound too large": lambda m: setattr(m.suite, "bound", 1e30),
    "a key's maker where each update has a key": lambda m: setattr(m.suite, "key_maker", "cleveland"),
    "released to the coordinator": lambda m: setattr(m, "release_to", "coordinator"),
    "released to nobody": lambda m: setattr(m, "release_to", ""),
    "no threshold": lambda m: setattr(m, "threshold", 0),
    "threshold of two thirds": lambda m: setattr(m, "threshold", 2),
    "threshold beyond roster": lambda m: setattr(m, "threshold", 5),
    "cohort below threshold": lambda m: setattr(m, "minimum_cohort", 2),
    "too many colluders": lambda m: setattr(m, "colluders", 2),
    "no time to acknowledge": lambda m: setattr(m.deadlines, "acknowledge", 0),
    "no time to answer": lambda m: setattr(m.deadlines, "unseal", 0),
    "parameters of another suite": lambda m: setattr(m.suite, "parameters", "seal-4096-48"),
    "no strategy": lambda m: m.ClearField("strategy"),
    "no task digest": lambda m: setattr(m.task, "code_digest", b""),
    "no task": lambda m: setattr(m.task, "name", ""),
    "no weights": lambda m: setattr(m, "initial_weights_digest", b""),
    "no parameters": lambda m: setattr(m, "parameter_count", 0),
    "more parameters than there can be": lambda m: setattr(m, "parameter_count", 2**60),
    "no deadlines": lambda m: m.ClearField("deadlines"),
    "another consortium": lambda m: setattr(m, "consortium", "lungs"),
    "no study name": lambda m: setattr(m, "study", ""),
}


SIGNED_NONSENSE_WITH_A_SHARED_KEY = {
    "cohort of one": lambda m: setattr(m, "minimum_cohort", 1),
    "no cohort": lambda m: setattr(m, "minimum_cohort", 0),
    "key maker a stranger": lambda m: setattr(m.suite, "key_maker", "mallory"),
    "no key maker": lambda m: setattr(m.suite, "key_maker", ""),
    "released to the coordinator": lambda m: setattr(m, "release_to", "coordinator"),
    "threshold of another suite": lambda m: setattr(m, "threshold", 1),
    "colluders of another suite": lambda m: setattr(m, "colluders", 1),
    "verification of another suite": lambda m: setattr(m, "collective_verification", True),
    "parameters of another suite": lambda m: setattr(m.suite, "parameters", "q32"),
}


def _refuses(kit, manifest, change):
    kit.trust(manifest)
    change(manifest)
    with pytest.raises(VerificationError) as caught:
        kit.trust(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SIGNED_NONSENSE)
def test_a_site_refuses_nonsense_that_the_root_signed(kit, name):
    _refuses(kit, kit.build(), SIGNED_NONSENSE[name])


@pytest.mark.parametrize("name", SIGNED_NONSENSE_WITH_A_SHARED_KEY)
def test_a_site_refuses_nonsense_about_a_shared_key(kit, name):
    _refuses(kit, kit.build(kit.SHARED_KEY), SIGNED_NONSENSE_WITH_A_SHARED_KEY[name])


def _grow(manifest, sites):
    for number in range(len(manifest.roster), sites):
        tail = number.to_bytes(32, "big")
        _add(
            manifest, name=f"s{number}", signing_key=tail, sealing_key=tail + bytes(1184), tls_key_digest=tail
        )


def test_a_roster_beyond_the_sums_capacity_is_refused(kit):
    params = suite("shared-key").parameters("seal-4096-48", 1000.0)
    assert 10 < params.max_sites < 1000
    manifest = kit.build(kit.SHARED_KEY)
    manifest.suite.bound = 1000.0
    _grow(manifest, params.max_sites + 1)
    with pytest.raises(VerificationError, match="does not fit"):
        kit.trust(manifest)
    del manifest.roster[-1]
    kit.trust(manifest)


def test_a_roster_for_which_no_precision_is_left_is_refused(kit):
    """Here the encoding is as fine as the roster allows: a bound that four sites can have, 1,000 cannot."""
    manifest = kit.build()
    manifest.suite.bound = 10_000.0
    kit.trust(manifest)
    _grow(manifest, 1000)
    manifest.threshold = manifest.minimum_cohort = 667
    with pytest.raises(VerificationError, match="no room for 1000 updates"):
        kit.trust(manifest)
    manifest.suite.bound = 64.0
    kit.trust(manifest)
    _grow(manifest, 1001)
    manifest.threshold = manifest.minimum_cohort = 668
    with pytest.raises(VerificationError, match="1 to 1000"):
        kit.trust(manifest)


def test_only_the_root_signs_manifests(kit):
    manifest = kit.build()
    other_root = RootKey.generate()
    for forged in (
        other_root.sign(Label.MANIFEST, manifest),
        kit.ROOT.sign(Label.CREDENTIAL, manifest),
        SigningKey.generate().sign(Label.MANIFEST, manifest, str(kit.HUB.identity)),
    ):
        with pytest.raises(VerificationError):
            verify_manifest(forged, kit.ANCHOR)
    with pytest.raises(VerificationError):
        verify_manifest(kit.signed(manifest), other_root.make_anchor("heart", kit.NOW))


@settings(max_examples=150)
@given(st.data())
def test_one_changed_byte_is_refused(kit, data):
    good = kit.signed(kit.build())
    changed = Signed()
    changed.CopyFrom(good)
    field = data.draw(st.sampled_from(["payload", "signature"]))
    content = bytearray(getattr(good, field))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    setattr(changed, field, bytes(content))
    with pytest.raises(VerificationError):
        verify_manifest(changed, kit.ANCHOR)


def test_a_manifest_survives_its_file(kit):
    good = kit.signed(kit.build())
    again = unarmour_signed(Kind.MANIFEST, armour_signed(Kind.MANIFEST, good))
    assert manifest_digest(again) == manifest_digest(good) == verify_manifest(again, kit.ANCHOR).digest


def test_a_member_finds_itself_with_its_own_keys(kit):
    seen = kit.trust(kit.build())
    for own in (*(kit.SITES[name] for name in kit.NAMES), kit.HUB):
        require_member(seen, own)


def test_a_member_refuses_a_manifest_with_anothers_key_in_its_place(kit):
    with pytest.raises(IdentityError, match="not on the roster"):
        require_member(kit.trust(kit.build()), kit.SITES["basel"])
    for stranger in (
        kit.issue(Role.SITE, "cleveland"),
        kit.issue(Role.COORDINATOR, "hub"),
        kit.issue(Role.COORDINATOR, "cleveland"),
        kit.issue(Role.OPERATOR, "hub"),
    ):
        with pytest.raises(IdentityError, match="with the keys it has here"):
            require_member(kit.trust(kit.build()), stranger)
    other = kit.issue(Role.SITE, "cleveland")
    for field in ("signing_key", "sealing_key", "tls_key_digest"):
        swapped = kit.build()
        setattr(swapped.roster[0], field, getattr(other, field))
        with pytest.raises(IdentityError, match="with the keys it has here"):
            require_member(kit.trust(swapped), kit.SITES["cleveland"])
    for field in ("signing_key", "tls_key_digest"):
        swapped = kit.build()
        setattr(swapped.coordinator, field, getattr(other, field))
        with pytest.raises(IdentityError):
            require_member(kit.trust(swapped), kit.HUB)
