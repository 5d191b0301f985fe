"""Who is at the other end of an RPC. gRPC checks a certificate once, when the connection is made; connections
live for days and gRPC knows no revocation, so time and status list are checked here on every call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from cipherward.clock import Clock
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.status_list import RevocationSource
from cipherward.errors import IdentityError
from cipherward.ids import Digest, Identity, Role

AuthContext = Mapping[str, Iterable[bytes]]
"""As gRPC's ``ServicerContext.auth_context()`` gives it."""

_CACHED_CERTIFICATES = 4096


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated caller."""

    identity: Identity
    serial: int
    tls_key_digest: Digest
    """SHA-256 of the certificate's SubjectPublicKeyInfo: the manifest pins it."""
    certificate: x509.Certificate


def _single(auth_context: AuthContext, key: str) -> bytes:
    values = list(auth_context.get(key, ()))
    if len(values) != 1:
        raise IdentityError(
            "the caller is not authenticated",
            why=f"its connection has {len(values)} values of {key}",
            fix="Connect with the member's TLS certificate",
        )
    return values[0]


def peer_identity(auth_context: AuthContext) -> Identity:
    """The identity in the certificate that TLS accepted; raises IdentityError if there is none.

    Neither time, revocation nor consortium are checked: that is ``PeerVerifier``'s.
    """
    return Identity.parse(_single(auth_context, "peer_spiffe_id").decode("utf-8", "replace"))


class PeerVerifier:
    """Decides on every RPC whether the caller may be who its certificate says.

    ``roles``: who may call at all; which role may call what is the policy table's.
    """

    def __init__(
        self,
        anchor: Anchor,
        revocations: RevocationSource,
        clock: Clock,
        roles: frozenset[Role] = frozenset({Role.SITE, Role.OPERATOR}),
    ) -> None:
        self._revocations, self._clock, self._roles = revocations, clock, roles

        # The signature check does not depend on time, so one per certificate is enough.
        @lru_cache(maxsize=_CACHED_CERTIFICATES)
        def read(pem: bytes) -> Peer:
            certificate = tls.load_certificate_pem(pem)
            identity = tls.check_leaf(certificate, anchor.root)
            if identity.consortium != anchor.consortium:
                raise IdentityError(
                    f"{identity} is of another consortium", why=f"this is {anchor.consortium}"
                )
            digest = tls.certificate_key_digest(certificate)
            return Peer(identity, certificate.serial_number, digest, certificate)

        self._read = read

    def verify(self, auth_context: AuthContext) -> Peer:
        """The caller. Raises IdentityError (unknown, expired, revoked, other consortium, wrong role)."""
        peer = self._read(_single(auth_context, "x509_pem_cert"))
        if peer_identity(auth_context) != peer.identity:
            raise IdentityError("the caller's certificate and connection name different members")
        if peer.identity.role not in self._roles:
            raise IdentityError(
                f"{peer.identity} may not call here",
                why=f"callers are {' and '.join(sorted(role.value + 's' for role in self._roles))}",
            )
        tls.check_time(peer.certificate, self._clock.now(), str(peer.identity))
        self._revocations.check(peer.serial, str(peer.identity))
        return peer
