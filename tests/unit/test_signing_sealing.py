"""Signatures and seals mean one thing only, and keys do not leak through repr or pickle."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherward.crypto.labels import Label, digest, framed
from cipherward.crypto.sealing import OVERHEAD, PUBLIC_BYTES, SealingKey, seal
from cipherward.crypto.signing import SigningKey, parse, verify
from cipherward.errors import FormatError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Commit, Join, ModelReport

KEY = SigningKey.generate()
SEALING = SealingKey.generate()


def test_signed_record_round_trips() -> None:
    signed = KEY.sign(Label.JOIN, Join(round=3, site="a"), "spiffe://c/site/a")
    assert verify(signed, Label.JOIN, KEY.public(), Join) == Join(round=3, site="a")


@pytest.mark.parametrize("change", ["payload", "signature", "label", "key"])
def test_changed_record_is_refused(change: str) -> None:
    signed = KEY.sign(Label.JOIN, Join(round=3, site="a"), "spiffe://c/site/a")
    label, public = Label.JOIN, KEY.public()
    if change == "payload":
        signed.payload = Join(round=4, site="a").SerializeToString()
    elif change == "signature":
        signed.signature = signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])
    elif change == "label":
        label = Label.COMMIT
    else:
        public = SigningKey.generate().public()
    with pytest.raises(VerificationError, match="does not hold"):
        verify(signed, label, public, Join)


def test_validly_signed_unknown_fields_are_refused() -> None:
    payload = Commit(length=3, ledger_sequence=3000).SerializeToString()  # field 10 is unknown to Join
    with pytest.raises(FormatError, match="unknown to this version"):
        parse(payload, Join, "join")
    with pytest.raises(FormatError):
        parse(b"\xff\xff\xff", Join, "join")


def test_oversized_record_is_refused_before_any_work() -> None:
    with pytest.raises(FormatError, match="limit"):
        verify(Signed(payload=bytes(8 * 2**20 + 1)), Label.JOIN, KEY.public(), Join)


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_framing_is_injective(left: list[bytes], right: list[bytes]) -> None:
    assert (framed(Label.JOIN, *left) == framed(Label.JOIN, *right)) == (left == right)
    assert digest(Label.JOIN, *left) != digest(Label.COMMIT, *left)


@given(st.binary(max_size=300))
def test_seal_opens_for_its_receiver_and_purpose_only(plaintext: bytes) -> None:
    sealed = seal(SEALING.public(), plaintext, Label.SEAL_MODEL, b"manifest", b"a")
    assert len(sealed) == len(plaintext) + OVERHEAD
    assert SEALING.open(sealed, Label.SEAL_MODEL, b"manifest", b"a") == plaintext
    for key, blob, label, context in (
        (SealingKey.generate(), sealed, Label.SEAL_MODEL, (b"manifest", b"a")),
        (SEALING, sealed[:-1], Label.SEAL_MODEL, (b"manifest", b"a")),
        (SEALING, sealed, Label.SEAL_SHARED_KEY, (b"manifest", b"a")),
        (SEALING, sealed, Label.SEAL_MODEL, (b"manifesta", b"")),
    ):
        with pytest.raises(VerificationError, match="does not open"):
            key.open(blob, label, *context)


@given(st.binary(max_size=1200))
def test_random_bytes_never_open(blob: bytes) -> None:
    with pytest.raises(VerificationError):
        SEALING.open(blob, Label.SEAL_MODEL)


def test_keys_survive_storage() -> None:
    assert SigningKey.from_bytes(KEY.to_bytes()).public() == KEY.public()
    assert SealingKey.from_bytes(SEALING.to_bytes()).public() == SEALING.public()
    with pytest.raises(FormatError):
        SigningKey.from_bytes(b"short")
    with pytest.raises(FormatError):
        SealingKey.from_bytes(b"short")
    with pytest.raises(FormatError):
        seal(bytes(PUBLIC_BYTES - 1), b"", Label.SEAL_MODEL)


@pytest.mark.parametrize("key", [KEY, SEALING])
def test_secrets_have_no_repr_and_no_pickle(key: SigningKey | SealingKey) -> None:
    assert "OMITTED" in repr(key)
    assert key.to_bytes().hex() not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_report_type_is_not_confused() -> None:
    signed = KEY.sign(Label.MODEL_REPORT, ModelReport(round=1), "a")
    with pytest.raises(VerificationError):
        verify(signed, Label.JOIN, KEY.public(), Join)
