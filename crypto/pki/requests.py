"""What somebody who wants to take part sends to the consortium's admin: public keys, and proof of holding
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from cipherward.crypto import seal_sizes
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.pki.tls import check_hosts, key_digest, make_csr, read_csr
from cipherward.crypto.signing import KEY_BYTES, SigningKey, parse, verify
from cipherward.errors import FormatError, IdentityError
from cipherward.ids import Digest, Identity, Role
from cipherward.proto.v1 import identity_pb2
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.identity_pb2 import MemberRequest

SEALING_KEY_BYTES = seal_sizes.PUBLIC_BYTES
"""ML-KEM-768 || X25519. Only the length is checked here: ``crypto.sealing`` checks the rest, and the
coordinator does not import that."""

ROLES = {
    Role.SITE: identity_pb2.ROLE_SITE,
    Role.COORDINATOR: identity_pb2.ROLE_COORDINATOR,
    Role.OPERATOR: identity_pb2.ROLE_OPERATOR,
}


def read_role(number: int) -> Role:
    """The role of a record; raises FormatError."""
    for role, value in ROLES.items():
        if value == number:
            return role
    raise FormatError(f"role {number} is not known to this version")


def check_sealing_key(role: Role, sealing_key: bytes) -> None:
    """Sites have one, others do not; raises FormatError."""
    expected = SEALING_KEY_BYTES if role is Role.SITE else 0
    if len(sealing_key) != expected:
        raise FormatError(
            f"a {role.value} with a sealing key of {len(sealing_key)} bytes", why=f"it must have {expected}"
        )


def key_fingerprint(identity: Identity, signing_key: bytes, sealing_key: bytes, tls_digest: bytes) -> Digest:
    """What the member's and the consortium's admin compare: it covers the name, the role and every key."""
    return digest(Label.FINGERPRINT, str(identity).encode(), signing_key, sealing_key, tls_digest)


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose proofs of possession hold."""

    identity: Identity
    signing_key: bytes
    sealing_key: bytes
    tls_key: ec.EllipticCurvePublicKey
    hosts: tuple[str, ...]

    @property
    def fingerprint(self) -> Digest:
        """Of name, role and keys."""
        return key_fingerprint(self.identity, self.signing_key, self.sealing_key, key_digest(self.tls_key))


def make_request(
    identity: Identity,
    signing_key: SigningKey,
    tls_key: ec.EllipticCurvePrivateKey,
    *,
    sealing_key: bytes,
    hosts: Sequence[str],
    now: float,
) -> Signed:
    """A request for a credential. ``sealing_key`` (public, 1216 bytes) for sites, empty for others; ``hosts``
    for coordinators, empty for others. Raises FormatError."""
    check_sealing_key(identity.role, sealing_key)
    _check_request_hosts(identity, hosts)
    record = MemberRequest(
        consortium=identity.consortium,
        role=ROLES[identity.role],
        name=identity.name,
        tls_csr=make_csr(tls_key, identity),
        signing_key=signing_key.public(),
        sealing_key=sealing_key,
        dns_names=hosts,
        created_at=int(now),
    )
    return signing_key.sign(Label.REQUEST, record, str(identity))


def _check_request_hosts(identity: Identity, hosts: Sequence[str]) -> None:
    check_hosts(hosts)
    if (identity.role is Role.COORDINATOR) != bool(hosts):
        raise FormatError(
            f"a request of {identity} names {len(hosts)} hosts",
            why="a coordinator names the hosts that sites dial, and nobody else names any",
        )


def verify_request(signed: Signed) -> Request:
    """Check structure and both proofs of possession; raises FormatError, IdentityError, VerificationError."""
    record = parse(signed.payload, MemberRequest, "request")
    identity = Identity.make(record.consortium, read_role(record.role), record.name)
    if signed.signer != str(identity):
        raise IdentityError(f"a request for {identity} is signed by {signed.signer[:120]!r}")
    if len(record.signing_key) != KEY_BYTES:
        raise FormatError(f"a signing key has {len(record.signing_key)} bytes", why=f"a key has {KEY_BYTES}")
    verify(signed, Label.REQUEST, record.signing_key, MemberRequest)
    check_sealing_key(identity.role, record.sealing_key)
    _check_request_hosts(identity, record.dns_names)
    tls_key = read_csr(record.tls_csr, identity)
    return Request(identity, record.signing_key, record.sealing_key, tls_key, tuple(record.dns_names))
