"""Versions of a manifest: sites join, leave, and change their keys."""

import pytest

from cipherward.crypto.manifest import (
    verify_successor,
)
from cipherward.errors import UsageError, VerificationError


def test_a_next_version_follows_from_the_one_before(kit):
    first = kit.trust(kit.build())
    fifth = kit.edited(("# first_round = 4 ", "first_round = 4 "), ("minimum = 3", "minimum = 4"))
    second = kit.trust(kit.version_2(fifth, names=(*kit.NAMES, "basel"), previous=first))
    verify_successor(first, second)
    assert second.manifest.version == 2 and second.manifest.previous_digest == first.digest
    third_text = kit.edited(("# first_round = 4 ", "first_round = 5 "))
    third = kit.trust(kit.version_2(third_text, previous=second))
    verify_successor(second, third)
    with pytest.raises(VerificationError, match="does not follow"):
        verify_successor(first, third)
    with pytest.raises(VerificationError, match="does not follow"):
        verify_successor(second, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m, "previous_digest", bytes(32)), "does not follow"),
        (lambda m: setattr(m, "version", 3), "does not follow"),
        (lambda m: setattr(m, "study", "lungs"), "of another study"),
        (lambda m: setattr(m, "first_round", 1), "must be later than round 1"),
        (lambda m: setattr(m, "initial_weights_digest", bytes(32)), "another model"),
        (lambda m: setattr(m, "parameter_count", 24), "another model"),
        (lambda m: setattr(m.task, "name", "lungs"), "another task"),
    ],
)
def test_a_version_that_does_not_follow_is_refused(kit, change, words):
    second = kit.version_2()
    change(second)
    with pytest.raises(VerificationError, match=words):
        verify_successor(kit.trust(kit.build()), kit.trust(second))


def test_a_next_version_is_checked_when_it_is_signed(kit):
    first = kit.trust(kit.build())
    with pytest.raises(UsageError, match="must be later than round 1"):
        kit.build(previous=first)
    with pytest.raises(UsageError, match="another model"):
        kit.version_2(previous=first, initial_weights_digest=bytes(32))
    with pytest.raises(UsageError, match="first round is 9"):
        kit.version_2(kit.edited(("# first_round = 4 ", "first_round = 9 ")), previous=first)
    # A fifth site raises the threshold, and with it the least cohort.
    with pytest.raises(UsageError, match=r"minimum cohort k is 3, because .* must be at least 4"):
        kit.version_2(names=(*kit.NAMES, "basel"), previous=first)


def test_every_version_has_a_digest_of_its_own_and_so_a_key_of_its_own(kit):
    first = kit.trust(kit.build())
    same, fewer = (kit.version_2(names=names, previous=first) for names in (kit.NAMES, kit.NAMES[:3]))
    assert len({first.digest, kit.trust(same).digest, kit.trust(fewer).digest}) == 3


def test_a_key_maker_who_left_is_refused(kit):
    first = kit.trust(kit.build(kit.SHARED_KEY))
    later = kit.edited(("# first_round = 4 ", "first_round = 4 "), text=kit.SHARED_KEY)
    with pytest.raises(UsageError, match="key's maker is 'cleveland'"):
        kit.version_2(later, names=kit.NAMES[1:], previous=first)


def test_a_study_keeps_its_suite(kit):
    first = kit.trust(kit.build(kit.SHARED_KEY))
    with pytest.raises(UsageError, match="another suite, because this study is encrypted by shared-key"):
        kit.version_2(previous=first)
    with pytest.raises(UsageError, match="another suite, because this study is encrypted by quorum"):
        kit.version_2(kit.edited(("# first_round = 4 ", "first_round = 4 "), text=kit.SHARED_KEY))
