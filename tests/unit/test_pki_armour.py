import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherward.crypto.labels import Label
from cipherward.crypto.pki.armour import (
    Kind,
    armour,
    armour_signed,
    blocks,
    parse_signed,
    unarmour,
    unarmour_signed,
)
from cipherward.crypto.pki.fingerprint import check, read, show
from cipherward.crypto.signing import SigningKey
from cipherward.errors import FormatError, IdentityError
from cipherward.proto.v1.identity_pb2 import StatusList

SIGNED = SigningKey.generate().sign(Label.STATUS_LIST, StatusList(consortium="heart", number=3), "root")


@given(st.sampled_from(Kind), st.binary(max_size=400))
def test_any_content_comes_back(kind, content):
    text = armour(kind, content)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert unarmour(kind, text) == content
    assert unarmour(kind, text.replace(b"\n", b"\r\n") + b"\n\n") == content


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=100)), max_size=4))
def test_blocks_come_back_in_order(items):
    assert blocks(b"\n".join(armour(kind, content) for kind, content in items)) == items


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(noise):
    with pytest.raises(FormatError):
        unarmour(Kind.ANCHOR, noise)


@given(st.binary(max_size=200), st.binary(max_size=4), st.data())
def test_a_changed_text_never_gives_the_same_content_or_crashes(content, junk, data):
    text = armour(Kind.REQUEST, content)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    changed = text[:start] + junk + text[end:]
    try:
        result = unarmour(Kind.REQUEST, changed)
    except FormatError:
        return
    # Line ends and blank space around a block mean nothing; everything else counts.
    assert result != content or changed.split() == text.split()


@given(st.binary(max_size=200))
def test_an_envelope_that_is_not_one_is_refused(content):
    try:
        signed = parse_signed(Kind.MANIFEST, content)
    except FormatError:
        return
    assert signed.SerializeToString(deterministic=True) == content


@given(st.data())
def test_any_changed_byte_of_a_signed_file_is_refused_or_shows(data):
    text = armour_signed(Kind.STATUS_LIST, SIGNED)
    position = data.draw(st.integers(0, len(text) - 1))
    changed = bytearray(text)
    changed[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FormatError):
        assert unarmour_signed(Kind.STATUS_LIST, bytes(changed)) != SIGNED


def test_a_signed_record_comes_back():
    assert unarmour_signed(Kind.STATUS_LIST, armour_signed(Kind.STATUS_LIST, SIGNED)) == SIGNED


def _body(text: bytes) -> bytes:
    return b"".join(text.splitlines()[1:-1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds nothing"),
        (armour(Kind.MANIFEST, b"x"), "holds manifest"),
        (armour(Kind.ANCHOR, b"x") * 2, "anchor and anchor"),
        (armour(Kind.ANCHOR, b"x")[:-10], "cut short"),
        (armour(Kind.ANCHOR, b"x").replace(b"ANCHOR", b"SPELL"), "does not know"),
        (b"Dear colleague,\n" + armour(Kind.ANCHOR, b"x"), "does not begin with"),
        (armour(Kind.ANCHOR, b"x").replace(b"eA==", b"eB=="), "not as they were written"),
        (armour(Kind.ANCHOR, b"x").replace(b"eA==", b"eA=\n="), "not as they were written"),
        (armour(Kind.ANCHOR, b"x").replace(b"eA==", b"eA"), "not base64"),
        (armour(Kind.ANCHOR, b"x").replace(b"eA==", b"Proc-Type: 4\neA=="), "not base64"),
        (armour(Kind.ANCHOR, bytes(20_000)), "too large"),
        (armour(Kind.ANCHOR, b"x") * 5, "too many"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(FormatError, match=words):
        unarmour(Kind.ANCHOR, text)


def test_an_envelope_must_be_canonical_and_whole():
    content = SIGNED.SerializeToString(deterministic=True)
    for bad in (
        content + b"\x0a\x00",  # the payload again, empty
        content + b"\x22\x01x",  # an unknown field
        content[:-1],
        b"",
        content.replace(b"root", b"toor"),
    ):
        with pytest.raises(FormatError):
            unarmour_signed(Kind.STATUS_LIST, armour(Kind.STATUS_LIST, bad))
    assert base64.b64decode(_body(armour_signed(Kind.STATUS_LIST, SIGNED))) == content


def test_fingerprints_are_read_as_people_type_them():
    digest = bytes(range(32))
    text = show(digest)
    assert text.startswith("0001 0203 0405") and len(text.split()) == 16
    for typed in (text, text.upper(), text.replace(" ", ""), text.replace(" ", ":"), f"  {text}\n"):
        assert read(typed) == digest
        check(digest, typed, "anchor")
    for typed in ("", text[:-1], text + "0", text.replace("0", "O"), text.replace("0", "\u0660")):
        with pytest.raises(FormatError, match="64 hexadecimal digits"):
            read(typed)
    with pytest.raises(IdentityError, match="0001 0203"):
        check(digest, text.replace("0001", "0002"), "anchor")
