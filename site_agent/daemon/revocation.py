"""Revocation as a site applies it: the newest status list, asked for again before each round, since a
connection may last for weeks; no study by a coordinator whose keys were revoked after its manifest was signed; and
nothing for such a site: no key, no model, no update under one plan with it."""

from __future__ import annotations

from cipherward.crypto.records import StudyTrust
from cipherward.errors import IdentityError
from cipherward.ids import Identity, Role
from cipherward.proto.v1.identity_pb2 import Revocation
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.site import Site


def refresh_status_list(site: Site, client: CoordinatorClient) -> None:
    """Take the coordinator's status list. Raises VerificationError for a forged or older one, IdentityError
    if it revokes this site."""
    status = site.member.status
    if status.offer(client.status_list()):
        site.log.info("status list renewed", number=status.newest.number)
    status.check(site.member.credential.serial, str(site.member.identity))


def require_coordinator_in_force(site: Site, trust: StudyTrust) -> None:
    """Raises IdentityError if the coordinator that the manifest names was revoked since the manifest was
    signed. gRPC does not show a client the server's certificate."""
    _require_in_force(site, trust, Role.COORDINATOR, trust.manifest.coordinator.name)


def require_site_in_force(site: Site, trust: StudyTrust, name: str) -> None:
    """Raises IdentityError if ``name`` is not on the manifest's roster, or was revoked since the manifest was
    signed. An honest coordinator refuses calls of revoked sites; a site does not rely on it."""
    _require_in_force(site, trust, Role.SITE, trust.site(name).name)


def is_site_in_force(site: Site, trust: StudyTrust, name: str) -> bool:
    """Whether ``require_site_in_force`` lets that site of the roster pass. Raises IdentityError for any other
    name."""
    identity = Identity.make(trust.manifest.consortium, Role.SITE, trust.site(name).name)
    return _revocation(site, trust, identity) is None


def _revocation(site: Site, trust: StudyTrust, identity: Identity) -> Revocation | None:
    """Manifests pin keys: a revocation of the same identity that is older than the manifest was of other
    keys."""
    for revocation in site.member.status.newest.revoked.values():
        if revocation.identity == str(identity) and revocation.revoked_at >= trust.manifest.signed_at:
            return revocation
    return None


def _require_in_force(site: Site, trust: StudyTrust, role: Role, name: str) -> None:
    identity = Identity.make(trust.manifest.consortium, role, name)
    revocation = _revocation(site, trust, identity)
    if revocation is not None:
        doing = "coordinates" if role is Role.COORDINATOR else "is on the roster of"
        raise IdentityError(
            f"{identity}, which {doing} study {trust.manifest.study}, is revoked",
            why=revocation.reason or "no reason given",
            fix="Ask the consortium's admin for a new version of the manifest",
        )
