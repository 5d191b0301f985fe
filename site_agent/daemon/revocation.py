"""Revocation as a site applies it: the newest status list, asked for again before each round, since a
connection may last for weeks; and no study by a coordinator whose keys were revoked after its manifest was
signed."""

from __future__ import annotations

from cipherward.crypto.records import StudyTrust
from cipherward.errors import IdentityError
from cipherward.ids import Identity, Role
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
    signed.

    gRPC does not show a client the server's certificate, and manifests pin keys: a revocation of the same
    identity that is older than the manifest was of other keys.
    """
    manifest = trust.manifest
    identity = str(Identity.make(manifest.consortium, Role.COORDINATOR, manifest.coordinator.name))
    for revocation in site.member.status.newest.revoked.values():
        if revocation.identity == identity and revocation.revoked_at >= manifest.signed_at:
            raise IdentityError(
                f"{identity}, which coordinates study {manifest.study}, is revoked",
                why=revocation.reason or "no reason given",
                fix="Ask the consortium's admin for a new version of the manifest",
            )
