"""From a signed manifest to what the service works with. Whatever could be wrong with it is found here,
before a study exists."""

from __future__ import annotations

from cipherward.coordinator.daemon.view import Version
from cipherward.crypto.manifest import require_member, verify_manifest
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.credentials import Credential
from cipherward.crypto.suites.payload import Layout
from cipherward.errors import VerificationError
from cipherward.proto.v1.common_pb2 import Signed

METRIC_VALUES = 3
"""Loss, correct, n."""


def read_manifest(signed: Signed, anchor: Anchor, own: Credential) -> Version:
    """A version that the root signed and that names this coordinator.

    Raises VerificationError or IdentityError.
    """
    trust = verify_manifest(signed, anchor)
    require_member(trust, own)
    declared = trust.manifest.suite
    params = trust.params
    if params.library != declared.library:
        raise VerificationError(
            f"the manifest of {trust.manifest.study} fixes {declared.library}",
            why=f"this coordinator has {params.library}, and formats differ between releases",
            fix=f"Install {declared.library} here, or have a manifest signed for {params.library}",
        )
    length = Layout(trust.manifest.parameter_count, METRIC_VALUES).length
    params.chunk_count(length)
    return Version(signed, trust, params, length)
