"""TLS keys and X.509 certificates (RFC 5280): a root that signs leaves only, and leaves whose one SAN URI is
the member's identity. P-256, since gRPC's TLS does not take Ed25519."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cipherward.errors import FormatError, IdentityError, VerificationError
from cipherward.ids import Digest, Identity, Role

MAX_DER_BYTES = 16 * 2**10
"""Largest certificate or CSR looked at."""
BACKDATE_SECONDS = 300
"""Certificates are valid from this long before their issue, for clocks that are a little behind."""
ROOT_YEARS = 20
MAX_HOSTS = 32

_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?!(?:.*\.)?\d+\Z){_DNS_LABEL}(?:\.{_DNS_LABEL})*\Z")
_X509_ERRORS = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that the library raises on bytes that are not a certificate of ours."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_serial() -> int:
    """A certificate's serial number: 1 to 2^63 - 1, from the operating system's generator."""
    return 1 + secrets.randbelow(2**63 - 1)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM without encryption, for ``durable.write_secret`` only: a daemon must start unattended."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key; raises FormatError unless it is a P-256 key."""
    try:
        key = load_pem_private_key(pem, password=None)
    except _X509_ERRORS as error:
        raise FormatError("a TLS key cannot be read", why="it is not an unencrypted PKCS#8 key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise FormatError("a TLS key is of the wrong type", why="it must be a P-256 key")
    return key


def key_digest(public: object) -> Digest:
    """``tls_key_digest`` of the manifest: SHA-256 of the SubjectPublicKeyInfo, DER. Raises FormatError."""
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise FormatError("a TLS key is of the wrong type", why="it must be a P-256 key")
    return Digest(
        hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    )


def certificate_key_digest(certificate: x509.Certificate) -> Digest:
    """``key_digest`` of the certificate's key; raises FormatError, also for a key that the library cannot read."""
    try:
        public = certificate.public_key()
    except _X509_ERRORS as error:
        raise FormatError("a certificate's key cannot be read", why="it must be a P-256 key") from error
    return key_digest(public)


def check_hosts(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names (lower case) or IP addresses as SAN entries; raises FormatError."""
    if len(hosts) > MAX_HOSTS:
        raise FormatError(f"there are {len(hosts)} host names", why=f"the limit is {MAX_HOSTS}")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        if _HOST.match(host) is None:
            raise FormatError(
                f"{host[:80]!r} is not a host name or IP address",
                fix="Give it as sites dial it, in lower case, without port or https://",
            )
        names.append(x509.DNSName(host))
    return names


def _subject(identity: Identity) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.consortium),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
        ]
    )


def _alternative_names(identity: Identity, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity)), *check_hosts(hosts)])


def make_csr(key: ec.EllipticCurvePrivateKey, identity: Identity) -> bytes:
    """A PKCS#10 request, DER: proof that the asker has the TLS key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(identity))
    builder = builder.add_extension(_alternative_names(identity, []), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_csr(der: bytes, identity: Identity) -> ec.EllipticCurvePublicKey:
    """The key asked for. Raises VerificationError unless that key signed the request for that identity."""
    if len(der) > MAX_DER_BYTES:
        raise FormatError(f"a CSR has {len(der)} bytes", why=f"the limit is {MAX_DER_BYTES}")
    try:
        csr = x509.load_der_x509_csr(der)
        public = csr.public_key()
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        valid = csr.is_signature_valid
    except _X509_ERRORS as error:
        raise FormatError("a CSR cannot be read", why="it is not a PKCS#10 request with a SAN") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise FormatError("a CSR asks for a certificate on a wrong type of key", why="it must be P-256")
    if not valid:
        raise VerificationError("a CSR is not signed by the key it names", why="the asker does not hold it")
    if names != _alternative_names(identity, []):
        raise IdentityError(f"a CSR is not for {identity}", why="it names somebody else")
    return public


def make_root_certificate(consortium: str, key: ec.EllipticCurvePrivateKey, now: float, serial: int) -> bytes:
    """The self-signed root, DER: may sign leaf certificates and nothing else."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, "consortium root"),
        ]
    )
    start = datetime.fromtimestamp(int(now) - BACKDATE_SECONDS, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=365 * ROOT_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certify=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _key_usage(*, certify: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certify,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purpose(role: Role) -> x509.ExtendedKeyUsage:
    """A coordinator only serves, everybody else only dials: neither's certificate works as the other's."""
    coordinator = role is Role.COORDINATOR
    return x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH if coordinator else ExtendedKeyUsageOID.CLIENT_AUTH]
    )


def issue_certificate(
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    public: ec.EllipticCurvePublicKey,
    identity: Identity,
    hosts: Sequence[str],
    *,
    serial: int,
    issued_at: int,
    expires_at: int,
) -> bytes:
    """A leaf certificate, DER, valid from ``issued_at`` - 300 s to ``expires_at`` (Unix seconds)."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(identity))
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(issued_at - BACKDATE_SECONDS, UTC))
        .not_valid_after(datetime.fromtimestamp(expires_at, UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certify=False), critical=True)
        .add_extension(_purpose(identity.role), critical=False)
        .add_extension(_alternative_names(identity, hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
    )
    return builder.sign(root_key, hashes.SHA256()).public_bytes(Encoding.DER)


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse DER; raises FormatError."""
    if len(der) > MAX_DER_BYTES:
        raise FormatError(f"a certificate has {len(der)} bytes", why=f"the limit is {MAX_DER_BYTES}")
    try:
        return x509.load_der_x509_certificate(der)
    except _X509_ERRORS as error:
        raise FormatError("a certificate cannot be read", why="it is not X.509 DER") from error


def load_certificate_pem(pem: bytes) -> x509.Certificate:
    """Parse the first certificate of a PEM text; raises FormatError."""
    if len(pem) > 2 * MAX_DER_BYTES:
        raise FormatError(f"a certificate has {len(pem)} bytes", why=f"the limit is {2 * MAX_DER_BYTES}")
    try:
        return x509.load_pem_x509_certificate(pem)
    except _X509_ERRORS as error:
        raise FormatError("a certificate cannot be read", why="it is not X.509 PEM") from error


def to_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM text."""
    return certificate.public_bytes(Encoding.PEM)


def check_root(der: bytes, consortium: str) -> x509.Certificate:
    """A root as ``make_root_certificate`` makes it; raises FormatError or VerificationError."""
    root = load_certificate(der)
    try:
        key_digest(root.public_key())
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
        root.verify_directly_issued_by(root)
        organisation = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    except _X509_ERRORS as error:
        raise VerificationError("the consortium's root certificate does not hold") from error
    if not (constraints.ca and constraints.path_length == 0 and usage.key_cert_sign):
        raise VerificationError("the consortium's root certificate may not sign members' certificates")
    if [attribute.value for attribute in organisation] != [consortium]:
        raise VerificationError(f"the root certificate is not of consortium {consortium}")
    return root


def check_leaf(certificate: x509.Certificate, root: x509.Certificate) -> Identity:
    """Whose certificate this is. Raises IdentityError unless ``root`` signed it for exactly one identity and
    the purpose of its role. Time and revocation are the caller's to check."""
    try:
        certificate.verify_directly_issued_by(root)
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        purpose = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _X509_ERRORS as error:
        raise IdentityError(
            "a certificate is not one of this consortium", why="its root did not sign it"
        ) from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if constraints.ca or len(uris) != 1:
        raise IdentityError("a certificate does not name one member")
    identity = Identity.parse(uris[0])
    if purpose != _purpose(identity.role):
        raise IdentityError(f"the certificate of {identity} is for another purpose than its role")
    return identity


def check_time(certificate: x509.Certificate, now: float, who: str) -> None:
    """Raises IdentityError if the certificate is not valid at ``now`` (Unix seconds)."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    moment = datetime.fromtimestamp(now, UTC)
    if moment < start:
        raise IdentityError(
            f"the certificate of {who} is not valid yet",
            why=f"it is valid from {start:%Y-%m-%d %H:%M} UTC and this machine's clock says "
            f"{moment:%Y-%m-%d %H:%M}",
            fix="Set this machine's clock",
        )
    if moment > end:
        raise IdentityError(
            f"the certificate of {who} has expired",
            why=f"it was valid until {end:%Y-%m-%d %H:%M} UTC",
            fix="Have the consortium's admin approve its request again",
        )
