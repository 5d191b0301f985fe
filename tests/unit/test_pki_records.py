"""Anchor, requests, credentials, status lists, root key: what holds, and what is refused."""

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cipherward.crypto.labels import Label
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour, unarmour
from cipherward.crypto.pki.credentials import read_credential, verify_credential
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.requests import make_request, verify_request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.status_list import StatusChecker, verify_status_list
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey
from cipherward.errors import FormatError, IdentityError, UsageError, VerificationError
from cipherward.ids import Identity, Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import Anchor as AnchorRecord
from cipherward.proto.v1.identity_pb2 import Credential as CredentialRecord
from cipherward.proto.v1.identity_pb2 import MemberRequest, Revocation
from cipherward.proto.v1.identity_pb2 import StatusList as StatusListRecord

NOW = 1_800_000_000.0
ROOT = RootKey.generate()
ANCHOR = ROOT.make_anchor("heart", NOW)
OTHER_ROOT = RootKey.generate()
OTHER_ANCHOR = OTHER_ROOT.make_anchor("heart", NOW)
ALPHA = Identity.make("heart", Role.SITE, "alpha")
SEALING_KEY = SealingKey.generate().public()
HOSTS = ["localhost", "127.0.0.1"]


def request(role=Role.SITE, name="alpha", consortium="heart", **changes):
    fields = {
        "sealing_key": SEALING_KEY if role is Role.SITE else b"",
        "hosts": HOSTS if role is Role.COORDINATOR else [],
        "now": NOW,
    } | changes
    identity = Identity.make(consortium, role, name)
    return make_request(identity, SigningKey.generate(), tls.new_key(), **fields)


def credential(role=Role.SITE, name="alpha", days=365, now=NOW):
    return issue_credential(ROOT, ANCHOR, verify_request(request(role, name)), days=days, now=now)


def status(number=1, *serials):
    revoked = [Revocation(serial=serial, identity="x", reason="left", revoked_at=1) for serial in serials]
    return issue_status_list(ROOT, ANCHOR, number=number, revoked=revoked, now=NOW)


def altered(signed, **fields):
    copy = Signed()
    copy.CopyFrom(signed)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


# Anchor


def test_an_anchor_comes_back_from_its_file():
    again = Anchor.from_text(ANCHOR.to_text())
    assert again.fingerprint == ANCHOR.fingerprint != OTHER_ANCHOR.fingerprint
    assert (again.consortium, again.signing_key) == ("heart", ANCHOR.signing_key)
    constraints = again.root.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = again.root.extensions.get_extension_for_class(x509.KeyUsage).value
    assert constraints.ca and constraints.path_length == 0
    assert usage.key_cert_sign and not usage.digital_signature


def test_no_part_of_an_anchor_can_be_exchanged():
    record = AnchorRecord.FromString(ANCHOR.signed.payload)
    other = AnchorRecord.FromString(OTHER_ANCHOR.signed.payload)
    forger = SigningKey.generate()
    for change in (
        {"consortium": "lungs"},
        {"root_certificate": other.root_certificate},
        {"signing_key": other.signing_key},
        {"signing_key": b"short"},
        {"consortium": "not a name"},
    ):
        changed = AnchorRecord.FromString(ANCHOR.signed.payload)
        for name, value in change.items():
            setattr(changed, name, value)
        with pytest.raises(VerificationError):
            Anchor.from_signed(altered(ANCHOR.signed, payload=changed.SerializeToString()))
    with pytest.raises(FormatError):
        Anchor.from_signed(forger.sign(Label.ANCHOR, record, str(ALPHA)))
    with pytest.raises(VerificationError):
        Anchor.from_signed(ROOT.sign(Label.CREDENTIAL, record))  # another purpose


def test_an_anchor_whose_certificate_is_not_a_root_is_refused():
    leaf = credential().certificate
    record = AnchorRecord(
        consortium="heart",
        root_certificate=leaf.public_bytes(Encoding.DER),
        signing_key=ANCHOR.signing_key,
    )
    with pytest.raises(VerificationError, match="root certificate"):
        Anchor.from_signed(ROOT.sign(Label.ANCHOR, record))
    record.root_certificate = tls.make_root_certificate("lungs", tls.new_key(), NOW, 1)
    with pytest.raises(VerificationError, match="not of consortium heart"):
        Anchor.from_signed(ROOT.sign(Label.ANCHOR, record))
    record.root_certificate = b"\x30\x03abc"
    with pytest.raises(FormatError):
        Anchor.from_signed(ROOT.sign(Label.ANCHOR, record))


# Root key


def test_the_root_key_opens_with_its_passphrase_only():
    text = ROOT.to_text("correct horse battery")
    again = RootKey.from_text(text, "correct horse battery")
    again.require_anchor(ANCHOR)
    with pytest.raises(VerificationError, match="belong together"):
        again.require_anchor(OTHER_ANCHOR)
    with pytest.raises(VerificationError, match="passphrase is wrong"):
        RootKey.from_text(text, "correct horse batterz")
    content = unarmour(Kind.ROOT_KEY, text)
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(VerificationError, match="the file was changed"):
        RootKey.from_text(armour(Kind.ROOT_KEY, flipped), "correct horse battery")
    for bad in (b"", content[:30], b"\x02" + content[1:]):
        with pytest.raises(FormatError):
            RootKey.from_text(armour(Kind.ROOT_KEY, bad), "correct horse battery")
    assert b"PRIVATE" not in text


def test_the_root_key_does_not_show_or_pickle():
    assert repr(ROOT) == "RootKey(OMITTED)"
    with pytest.raises(TypeError):
        pickle.dumps(ROOT)
    with pytest.raises(UsageError, match="at least 12"):
        ROOT.to_text("short")


# Requests


@pytest.mark.parametrize("role", list(Role))
def test_a_request_proves_possession(role):
    verified = verify_request(request(role))
    assert verified.identity == Identity.make("heart", role, "alpha")
    assert verified.hosts == (tuple(HOSTS) if role is Role.COORDINATOR else ())
    assert len(verified.sealing_key) == (1216 if role is Role.SITE else 0)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        (Role.SITE, {"sealing_key": b""}),
        (Role.OPERATOR, {"sealing_key": SEALING_KEY}),
        (Role.SITE, {"hosts": ["localhost"]}),
        (Role.COORDINATOR, {"hosts": []}),
        (Role.COORDINATOR, {"hosts": ["https://coordinator.example"]}),
        (Role.COORDINATOR, {"hosts": ["10.0.0.300"]}),
        (Role.COORDINATOR, {"hosts": [f"h{number}" for number in range(33)]}),
    ],
)
def test_a_request_with_the_wrong_parts_is_not_made(role, change):
    with pytest.raises(FormatError):
        request(role, **change)


def resigned(change, *, signer=None, key=None):
    key = key or SigningKey.generate()
    signed = make_request(ALPHA, key, tls.new_key(), sealing_key=SEALING_KEY, hosts=[], now=NOW)
    record = MemberRequest.FromString(signed.payload)
    change(record)
    return key.sign(Label.REQUEST, record, signer or str(ALPHA))


def test_a_request_that_does_not_hold_together_is_refused():
    stolen = MemberRequest.FromString(request().payload)
    for change, error in (
        (lambda r: setattr(r, "name", "beta"), IdentityError),  # the signer is still alpha
        (lambda r: setattr(r, "role", 0), FormatError),
        (lambda r: setattr(r, "role", 77), FormatError),
        (lambda r: setattr(r, "consortium", "no good"), FormatError),
        (lambda r: setattr(r, "sealing_key", b"x" * 5), FormatError),
        (lambda r: setattr(r, "signing_key", stolen.signing_key), VerificationError),
        (lambda r: setattr(r, "signing_key", b""), FormatError),
        (lambda r: setattr(r, "tls_csr", b"\x30\x00"), FormatError),
        (lambda r: setattr(r, "tls_csr", bytes(20_000)), FormatError),
        (lambda r: r.dns_names.append("localhost"), FormatError),
        (lambda r: setattr(r, "tls_csr", tls.make_csr(tls.new_key(), _beta())), IdentityError),
        (lambda r: setattr(r, "tls_csr", _broken_csr()), VerificationError),
        (lambda r: setattr(r, "tls_csr", _p384_csr()), FormatError),
    ):
        with pytest.raises(error):
            verify_request(resigned(change))
    verify_request(resigned(lambda record: None))
    with pytest.raises(IdentityError):
        verify_request(resigned(lambda record: None, signer=str(_beta())))
    good = request()
    with pytest.raises(VerificationError):
        verify_request(altered(good, signature=bytes(64)))


def _beta():
    return Identity.make("heart", Role.SITE, "beta")


def _broken_csr():
    """The CSR of a key that the asker saw but does not hold."""
    csr = bytearray(tls.make_csr(tls.new_key(), ALPHA))
    csr[-1] ^= 1
    return bytes(csr)


def _p384_csr():
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(ALPHA))])
    key = ec.generate_private_key(ec.SECP384R1())
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


# Credentials


@pytest.mark.parametrize("role", list(Role))
def test_a_credential_binds_name_keys_and_certificate(role):
    asked = verify_request(request(role))
    issued = issue_credential(ROOT, ANCHOR, asked, days=365, now=NOW)
    again = verify_credential(issued.signed, ANCHOR, NOW, status(), role)
    assert again.identity == asked.identity and again.fingerprint == asked.fingerprint
    assert again.serial == again.certificate.serial_number > 0
    assert again.days_left(NOW) == 365
    start = datetime.fromtimestamp(NOW - 300, UTC)
    assert again.certificate.not_valid_before_utc == start
    assert again.certificate.not_valid_after_utc == start + timedelta(days=365, seconds=300)
    names = again.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(asked.identity)]
    assert names.get_values_for_type(x509.DNSName) == (["localhost"] if asked.hosts else [])
    usage = again.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    expected = "serverAuth" if role is Role.COORDINATOR else "clientAuth"
    assert [purpose._name for purpose in usage] == [expected]


def test_a_credential_out_of_its_time_or_role_is_refused():
    issued = credential(days=2)
    for now in (NOW - 299, NOW, NOW + 2 * 86_400):
        verify_credential(issued.signed, ANCHOR, now, status(), Role.SITE)
    with pytest.raises(IdentityError, match="Set this machine's clock"):
        issued.check(NOW - 301, status())
    with pytest.raises(IdentityError, match="has expired"):
        issued.check(NOW + 2 * 86_400 + 1, status())
    with pytest.raises(IdentityError, match="with the role operator"):
        verify_credential(issued.signed, ANCHOR, NOW, status(), Role.OPERATOR)
    with pytest.raises(IdentityError, match=r"revoked.*left"):
        verify_credential(issued.signed, ANCHOR, NOW, status(2, issued.serial), Role.SITE)


@pytest.mark.parametrize("days", [0, -3, 826, 10**9])
def test_a_credential_has_a_sane_lifetime(days):
    with pytest.raises(UsageError):
        credential(days=days)


def test_a_credential_does_not_outlive_the_root():
    with pytest.raises(UsageError, match="root's own certificate"):
        credential(now=NOW + 20 * 365 * 86_400 - 86_400)


def test_a_request_to_another_consortium_is_refused():
    with pytest.raises(IdentityError, match="lungs"):
        issue_credential(ROOT, ANCHOR, verify_request(request(consortium="lungs")), days=9, now=NOW)


def test_a_credential_that_does_not_hold_together_is_refused():
    issued, other = credential(), credential(name="beta")
    record = CredentialRecord.FromString(issued.signed.payload)
    foreign = issue_credential(OTHER_ROOT, OTHER_ANCHOR, verify_request(request()), days=9, now=NOW)
    foreign_record = CredentialRecord.FromString(foreign.signed.payload)
    other_record = CredentialRecord.FromString(other.signed.payload)

    def changed(**fields):
        copy = CredentialRecord()
        copy.CopyFrom(record)
        for name, value in fields.items():
            setattr(copy, name, value)
        return ROOT.sign(Label.CREDENTIAL, copy)

    read_credential(changed(), ANCHOR)
    for bad in (
        changed(consortium="lungs"),
        changed(name="beta"),
        changed(role=3, sealing_key=b""),
        changed(serial=record.serial + 1),
        changed(expires_at=record.expires_at + 1),
        changed(issued_at=record.expires_at),
        changed(tls_certificate=other_record.tls_certificate),
        changed(tls_certificate=foreign_record.tls_certificate),
        changed(tls_certificate=b""),
        changed(signing_key=b""),
        changed(sealing_key=b""),
        foreign.signed,
        altered(issued.signed, signature=foreign.signed.signature),
        altered(issued.signed, payload=issued.signed.payload[:-1] + b"\x00"),
        altered(issued.signed, signer=str(ALPHA)),
        ROOT.sign(Label.STATUS_LIST, record),
    ):
        with pytest.raises(VerificationError):
            read_credential(bad, ANCHOR)


# Status lists


def checker(known=None, seen=None):
    return StatusChecker(ANCHOR, known or status().signed, (seen if seen is not None else []).append)


def test_a_newer_list_is_kept_and_an_older_one_refused():
    seen = []
    keeper = checker(seen=seen)
    keeper.check(7, "alpha")
    assert keeper.offer(status(2, 7).signed) is True
    assert keeper.offer(status(2, 7).signed) is False
    with pytest.raises(IdentityError, match="status list 2 names it: left"):
        keeper.check(7, "alpha")
    with pytest.raises(VerificationError, match="list 2 has been seen"):
        keeper.offer(status(1).signed)
    assert keeper.offer(status(5, 7, 8).signed) is True
    assert [verify_status_list(signed, ANCHOR).number for signed in seen] == [2, 5]
    assert keeper.newest.number == 5


def test_no_revocation_is_taken_back_and_no_number_used_twice():
    keeper = checker(status(2, 7).signed)
    with pytest.raises(VerificationError, match="takes back"):
        keeper.offer(status(3, 8).signed)
    with pytest.raises(VerificationError, match="two different"):
        keeper.offer(status(2, 7, 8).signed)
    with pytest.raises(IdentityError):
        keeper.check(7, "alpha")
    keeper.check(8, "beta")


def test_a_list_that_could_not_be_kept_does_not_take_effect():
    def full(_signed):
        raise OSError("disk full")

    keeper = StatusChecker(ANCHOR, status().signed, full)
    with pytest.raises(OSError, match="disk full"):
        keeper.offer(status(2, 7).signed)
    assert keeper.newest.number == 1


def test_a_list_that_is_not_the_roots_or_malformed_is_refused():
    twice = [Revocation(serial=4), Revocation(serial=4)]
    foreign = issue_status_list(OTHER_ROOT, OTHER_ANCHOR, number=9, revoked=[], now=NOW)
    for bad in (
        foreign.signed,
        altered(status(3).signed, signature=bytes(64)),
        altered(status(3).signed, signer=str(ALPHA)),
        ROOT.sign(Label.STATUS_LIST, StatusListRecord(consortium="lungs", number=3)),
        ROOT.sign(Label.STATUS_LIST, StatusListRecord(consortium="heart")),
        ROOT.sign(Label.STATUS_LIST, StatusListRecord(consortium="heart", number=3, revoked=twice)),
        ROOT.sign(Label.STATUS_LIST, StatusListRecord(consortium="heart", number=3, revoked=[Revocation()])),
        ROOT.sign(Label.CREDENTIAL, StatusListRecord(consortium="heart", number=3)),
    ):
        with pytest.raises(VerificationError):
            checker().offer(bad)


# TLS keys


def test_only_p256_keys_are_taken():
    key = tls.new_key()
    assert tls.key_from_pem(tls.key_to_pem(key)).private_numbers() == key.private_numbers()
    p384 = ec.generate_private_key(ec.SECP384R1())
    for bad in (p384.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), b"", b"-----BEGIN"):
        with pytest.raises(FormatError):
            tls.key_from_pem(bad)
    with pytest.raises(FormatError):
        tls.key_digest(p384.public_key())


def test_bytes_that_are_not_a_certificate_are_refused():
    for bad in (b"", b"\x30\x82", bytes(17_000)):
        with pytest.raises(FormatError):
            tls.load_certificate(bad)
    for bad in (b"", b"-----BEGIN CERTIFICATE-----\n", b"x" * 40_000):
        with pytest.raises(FormatError):
            tls.load_certificate_pem(bad)
