"""Defences taken out of a coordinator's or site's process, by name. See ``changed``; nothing of the product loads
this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509

Change = Callable[[str], None]
CHANGES: dict[str, Change] = {}
"""Each is called with what follows ``=`` in its name, before the command runs."""


def change(action: Change) -> Change:
    """Register it under its function's name, with dashes."""
    CHANGES[action.__name__.replace("_", "-")] = action
    return action


def patch(owner: Any, name: str, value: Any) -> None:
    """``owner.name`` is ``value`` from now on; AttributeError if there is no such name."""
    getattr(owner, name)  # a defence that was renamed must not be missed in silence
    setattr(owner, name, value)


@change
def any_root(other: str) -> None:
    """The coordinator takes certificates of a second root, the PEM file ``other``, as well."""
    from cipherward.crypto.pki import grpc_credentials, tls
    from cipherward.ids import Identity

    made = grpc_credentials.server_credentials

    def trusting(*, key_pem: bytes, certificate_pem: bytes, root_pem: bytes) -> Any:
        both = root_pem + Path(other).read_bytes()
        return made(key_pem=key_pem, certificate_pem=certificate_pem, root_pem=both)

    def unchecked(certificate: x509.Certificate, root: x509.Certificate) -> Identity:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Identity.parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])

    patch(grpc_credentials, "server_credentials", trusting)
    patch(tls, "check_leaf", unchecked)


@change
def no_expiry(_: str) -> None:
    """Time is not checked on calls."""
    from cipherward.crypto.pki import tls

    patch(tls, "check_time", lambda certificate, now, who: None)


@change
def no_revocation(_: str) -> None:
    """The status list is not looked at."""
    from cipherward.crypto.pki.status_list import StatusChecker

    patch(StatusChecker, "check", lambda self, serial, who: None)


@change
def no_roles(_: str) -> None:
    """Every member may call everything, and every member's order counts."""
    from cipherward.coordinator.api import operators, policy
    from cipherward.crypto.pki.credentials import read_credential

    for rpc, row in policy.POLICIES.items():
        policy.POLICIES[rpc] = replace(row, roles=policy.ANYONE)
    patch(
        operators,
        "verify_credential",
        lambda signed, anchor, now, revocations, role: read_credential(signed, anchor),
    )


@change
def takes_their_word(_: str) -> None:
    """A caller is whom its header ``claimed-site`` names, and signatures on records are not checked."""
    from cipherward.coordinator.api import dispatch, posting
    from cipherward.coordinator.daemon.view import StudyView
    from cipherward.crypto import records
    from cipherward.ids import Identity, Role

    authenticate = dispatch.Dispatcher._authenticate

    def claimed(self: Any, rpc: str, policy: Any, context: Any) -> Any:
        peer = authenticate(self, rpc, policy, context)
        name = dict(context.invocation_metadata() or ()).get("claimed-site")
        if name is None:
            return peer
        return replace(peer, identity=Identity.make(peer.identity.consortium, Role.SITE, name))

    def unverified(signed: Any, label: Any, key: Any, kind: Any) -> Any:
        return kind.FromString(signed.payload)

    patch(dispatch.Dispatcher, "_authenticate", claimed)
    patch(posting, "verify", unverified)
    patch(records, "verify", unverified)
    patch(StudyView, "require_site", lambda self, site, digest: None)


@change
def plaintext(certificate: str) -> None:
    """The port speaks no TLS, and every caller is the member of that certificate file."""
    from cipherward.coordinator.daemon import service
    from cipherward.crypto.pki import tls
    from cipherward.crypto.pki.peers import Peer, PeerVerifier
    from cipherward.ids import Identity

    found = tls.load_certificate_pem(Path(certificate).read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    who = Identity.parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    peer = Peer(who, found.serial_number, tls.certificate_key_digest(found), found)
    patch(service, "_bind", lambda server, listen, credentials: server.add_insecure_port(listen))
    patch(PeerVerifier, "verify", lambda self, context: peer)


@change
def no_upload_checks(_: str) -> None:
    """Uploaded chunks are stored as they come, and the digests sent with them are believed."""
    from cipherward.coordinator.api import staging

    def take(self: Any, message: Any) -> None:
        self._accept(message.data).claimed.append(message.leaf_hash)

    def take_share(self: Any, message: Any) -> None:
        self._accept(message.share.sealed)

    def check(self: Any, run: Any) -> list[bytes]:
        leaves = self._inspection.leaves(run.buffer, run.sizes)
        return [claimed or leaf for claimed, leaf in zip(run.claimed, leaves, strict=True)]

    patch(staging.ChunkStage, "take", take)
    patch(staging.ShareStage, "take", take_share)
    patch(staging.ShareStage, "require_begin", lambda self, chunks: None)
    patch(staging.ChunkStage, "check", check)


@change
def no_rates(_: str) -> None:
    """Calls may come as often as they like: so that no other defence is taken for the one under attack."""
    from cipherward.coordinator.api import policy

    for rpc, row in policy.POLICIES.items():
        policy.POLICIES[rpc] = replace(row, per_second=1e6, burst=10**6)


@change
def no_message_limit(_: str) -> None:
    """Messages of any size are taken in."""
    from cipherward.coordinator.api import policy, service

    rest = [(name, value) for name, value in service.OPTIONS if name != "grpc.max_receive_message_length"]
    patch(service, "OPTIONS", (*rest, ("grpc.max_receive_message_length", -1)))
    for rpc, row in policy.POLICIES.items():
        policy.POLICIES[rpc] = replace(row, max_message=2**40)


@change
def endless_patience(_: str) -> None:
    """An upload keeps its place however slow it is."""
    from cipherward.coordinator.api import admission

    patch(admission, "PATIENCE_SECONDS", 1e6)


@change
def keeps_everything(_: str) -> None:
    """A coordinator that never deletes what it received."""
    from cipherward.coordinator.daemon.retention import Retention

    patch(Retention, "end", lambda *_: [])
    patch(Retention, "expire", lambda *_: [])


@change
def counts_anything(_: str) -> None:
    """Uploads are taken for whatever round they are, committed or not, and a sum has every update of its study that is
    stored."""
    from cipherward.coordinator.aggregation.local import LocalEngine
    from cipherward.coordinator.api.uploads import Uploads
    from cipherward.coordinator.daemon.sums import Sums
    from cipherward.coordinator.daemon.view import share_set, update_set
    from cipherward.crypto.quorum.params import QuorumParams

    summing, running, stored = Sums._sum, LocalEngine.run, {}

    async def begin(self: Any, call: Any, view: Any, header: Any) -> Any:
        key = (view.name, header.round, call.name, header.attempt)

        def counts(t: Any) -> tuple[int, int]:
            return t.chunks.count(update_set(*key)), t.chunks.count(share_set(*key))

        return await self._core.writer.transaction(counts)

    async def record(self: Any, call: Any, view: Any, header: Any, parts: Any) -> None:
        def add(t: Any) -> None:
            for stage, segment in parts:
                t.chunks.add(stage.name, segment)

        await self._core.writer.transaction(add)

    def everything(self: Any, view: Any, effect: Any) -> Any:
        with self._store.transaction() as t:
            names = [name for name in t.chunks.names(f"{view.name}/") if "/update/" in name]
            stored[view.name] = [t.chunks.load(name) for name in names]
        return summing(self, view, effect)

    def run(self: Any, job: Any, *rest: Any) -> Any:
        return running(self, replace(job, updates=stored[job.updates[0].name.partition("/")[0]]), *rest)

    patch(Uploads, "_view", lambda self, call, header: self._core.studies.require(header.study))
    patch(Uploads, "_begin", begin)
    patch(Uploads, "_record", record)
    patch(Sums, "_sum", everything)
    patch(LocalEngine, "run", run)
    patch(QuorumParams, "check_sites", lambda *_: None)
