"""T22: somebody who is not a member, is one no more, or is another one, at a real coordinator's port."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cipherward.crypto.labels import Label
from cipherward.crypto.pki.grpc_credentials import channel_credentials
from cipherward.crypto.pki.member_files import TLS_CERTIFICATE
from cipherward.crypto.pki.store import Member
from cipherward.crypto.records import StudyTrust
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.kit.caller import Caller
from cipherward.evaluation.threats.kit.made_up import MadeUpSite
from cipherward.evaluation.threats.kit.service import STUDY, Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import OperatorCommand, OperatorOrder
from cipherward.site_agent.client.errors import translated

SITES = ("alpha", "beta", "gamma", "delta")
LIFE_SECONDS = 8.0
"""Of the certificate that expires while its site is connected."""
WITHOUT = ("no-expiry", "no-revocation", "no-roles", "takes-their-word")


@dataclass
class _Attacked:
    """A coordinator, and what the attackers have: a consortium of the same names under a root of their own."""

    service: Service
    stranger: Service
    trust: StudyTrust

    def silent(self) -> str:
        """What members who may call are told by either coordinator; empty if they are answered, as they must be."""
        for service, name in ((self.service, "beta"), (self.stranger, "alpha")):
            caller = Caller(service.address, service.member(name).channel_credentials())
            if told := self.hello(caller):
                return told
            caller.close()
        return ""

    def hello(self, caller: Caller) -> str:
        """What a call with one reply brings."""
        return _said(lambda: caller.call("Hello", pb.HelloRequest(protocol=1), 10))


def _said(action: Callable[[], object]) -> str:
    """Empty if the attack got through, else what it was told."""
    try:
        action()
    except CipherwardError as error:
        return str(error)
    return ""


def _wrong_root(on: _Attacked) -> str:
    member = on.stranger.member("alpha")
    root = on.service.member("alpha").anchor.root_pem  # it is public
    return on.hello(Caller(on.service.address, _credentials(member, root)))


def _expired(on: _Attacked) -> str:
    """It connected while its certificate was good, and the connection is still open."""
    service = on.service
    service.consortium.expiring("gamma", LIFE_SECONDS)
    start = time.monotonic()
    caller = Caller(service.address, service.member("gamma").channel_credentials())
    before = on.hello(caller)
    if before:
        return f"refused before its end: {before}"
    time.sleep(max(0.0, LIFE_SECONDS + 1.5 - (time.monotonic() - start)))
    return on.hello(caller)


def _revoked(on: _Attacked) -> str:
    """It calls again on the connection that it had."""
    caller = Caller(on.service.address, on.service.member("delta").channel_credentials())
    before = on.hello(caller)
    if before:
        return f"refused before: {before}"
    on.service.consortium.revoke("delta")
    listed = Caller(
        on.service.address, on.service.consortium.member(Role.SITE, "alpha").channel_credentials()
    )
    deadline = time.monotonic() + 20
    while not (told := on.hello(caller)) and time.monotonic() < deadline:
        if "no-revocation" in on.service.changes:
            break
        on.hello(listed)
        time.sleep(0.5)
    return told


def _anothers_name(on: _Attacked) -> str:
    """alpha posts a join in beta's name over its own connection."""
    alpha = MadeUpSite(on.service.member("alpha"), on.service.address, on.trust)
    join = alpha.joining(1)
    join.site = "beta"
    made = alpha.member.signing_key.sign(Label.JOIN, join, str(on.service.member("beta").identity))

    def post(record: Signed) -> None:
        with translated():
            request = pb.PostRequest(study=STUDY, record=record)
            alpha.stub.PostJoin(request, timeout=10, metadata=[("claimed-site", "beta")])

    return _said(lambda: post(made))


def _operators_order(on: _Attacked) -> str:
    """A site ends the study."""
    member = on.service.member("alpha")
    command = OperatorCommand(
        action=OperatorCommand.ACTION_ABORT,
        manifest_digest=on.trust.digest,
        reason="mine",
        issued_at=int(time.time()),
    )
    order = OperatorOrder(
        command=member.signing_key.sign(Label.OPERATOR_COMMAND, command, str(member.identity)),
        credential=member.credential.signed,
    )
    return _said(lambda: Caller(on.service.address, member.channel_credentials()).call("AbortStudy", order))


def _without_tls(on: _Attacked) -> str:
    return on.hello(Caller(on.service.address, None))


def _false_coordinator(on: _Attacked) -> str:
    """alpha dials a coordinator of the same name and address under the stranger's root."""
    return on.hello(Caller(on.stranger.address, _roots(on, on.service.member("alpha"))))


def _roots(on: _Attacked, member: Member) -> Any:
    if not on.service.changes:
        return member.channel_credentials()
    return _credentials(member, member.anchor.root_pem + on.stranger.member("alpha").anchor.root_pem)


def _credentials(member: Member, roots: bytes) -> Any:
    return channel_credentials(
        key_pem=member._tls_key, certificate_pem=member.tls_certificate, root_pem=roots
    )


ATTACKS: tuple[tuple[str, Callable[[_Attacked], str]], ...] = (
    ("a certificate of another root, with a member's name", _wrong_root),
    ("a site that dials a coordinator of another root", _false_coordinator),
    ("a record in another site's name", _anothers_name),
    ("a certificate that expires on an open connection", _expired),
    ("a certificate revoked on an open connection", _revoked),
    ("a site that gives an operator's order", _operators_order),
    ("a port spoken to without TLS", _without_tls),
)


def _service(stack: ExitStack, folder: Path, names: tuple[str, ...], *changes: str) -> Service:
    service = stack.enter_context(Service(folder, names, changes))
    service.start()
    return service


def _mount(context: Context, *, defended: bool) -> dict[str, str]:
    """By attack, what it was told; empty where it got through."""
    said = {}
    folder = context.folder / ("shipped" if defended else "without")
    with ExitStack() as stack:
        stranger = stack.enter_context(Service(folder / "stranger", ("alpha",), () if defended else ("",)))
        other = folder / "other-root.pem"
        other.write_bytes(stranger.member("alpha").anchor.root_pem)
        changes = () if defended else (*WITHOUT, f"any-root={other}")
        service = _service(stack, folder / "hub", SITES, *changes)
        if not defended:
            ours = folder / "our-root.pem"
            ours.write_bytes(service.member("alpha").anchor.root_pem)
            stranger.changes = (f"any-root={ours}",)
        stranger.start()
        on = _Attacked(service, stranger, service.study(study_file("quorum", "")))
        for name, attack in ATTACKS:
            if attack is _without_tls and not defended:
                continue
            context.note(f"{'as shipped' if defended else 'without'}: {name}")
            said[name] = attack(on)
            if silent := on.silent():
                # Nobody is let in by a coordinator that is down: that says nothing.
                raise RuntimeError(f"after {name}, a member that may call was told: {silent}")
    if not defended:
        with ExitStack() as stack:
            bare = stack.enter_context(Service(folder / "bare", ("alpha",), ("plaintext",)))
            bare.changes = (f"plaintext={bare.consortium.site_folder('alpha') / TLS_CERTIFICATE}",)
            bare.start()
            said[ATTACKS[-1][0]] = _said(
                lambda: Caller(bare.address, None).call("Hello", pb.HelloRequest(protocol=1), 10)
            )
    return said


def run(context: Context) -> Result:
    """Both ways."""
    off, on = _mount(context, defended=False), _mount(context, defended=True)
    cases = [
        Case(
            name,
            control=off[name] or "answered",
            control_worked=not off[name],
            defended=on[name] or "answered",
            held=bool(on[name]) and "refused before" not in on[name],
        )
        for name, _ in ATTACKS
    ]
    held = sum(case.held for case in cases)
    return Result.of_cases(
        cases,
        f"{held} of {len(cases)} ways of passing for somebody else were refused by a running coordinator or site; "
        "each got through where the check that stops it was taken out.",
    )


ROW = Row(
    id="T22",
    title="impersonation",
    adversary="Anybody who reaches the coordinator's port or answers in its place, former members included.",
    holds="A root, keys and certificates of their own; an expired or revoked certificate; a member's own keys.",
    source="Our own review; STRIDE (spoofing).",
    metric="attacks that were answered",
    passes="none is answered as shipped, while members who may call are, after each attack",
    seeds=(22,),
    fast_seconds=40,
    full_seconds=40,
    run=run,
)
