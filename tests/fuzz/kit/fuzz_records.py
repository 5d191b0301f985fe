"""Signed records, by the functions that sites and coordinator believe them with."""

from __future__ import annotations

from functools import cache

from fuzz_mutate import Envelope, Mutator
from fuzz_target import target
from fuzz_world import NOW, SITES, consortium, study

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import require_member, verify_manifest, verify_successor
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.credentials import verify_credential
from cipherward.crypto.pki.requests import verify_request
from cipherward.crypto.pki.status_list import StatusChecker
from cipherward.crypto.quorum_records import (
    check_answer_key,
    check_share,
    check_update_chunk,
    coverage,
    verify_acknowledgement,
    verify_answer,
    verify_sum_check,
)
from cipherward.crypto.records import (
    verify_abort,
    verify_close,
    verify_commit,
    verify_join,
    verify_model_report,
    verify_plan,
    verify_relay,
    verify_round_record,
)
from cipherward.crypto.signing import verify
from cipherward.crypto.trust_statement import trust_statement
from cipherward.errors import FormatError
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import identity_pb2 as ip
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import ErrorDetail, Signed

ENVELOPES = {
    Label.ANCHOR: ip.Anchor,
    Label.REQUEST: ip.MemberRequest,
    Label.CREDENTIAL: ip.Credential,
    Label.STATUS_LIST: ip.StatusList,
    Label.MANIFEST: sp.Manifest,
    Label.OPERATOR_COMMAND: sp.OperatorCommand,
    Label.ROUND_RECORD: rp.RoundRecord,
    Label.JOIN: rp.Join,
    Label.PLAN_RECORD: rp.PlanRecord,
    Label.COMMIT: rp.Commit,
    Label.ACKNOWLEDGEMENT: rp.Acknowledgement,
    Label.CLOSE_RECORD: rp.CloseRecord,
    Label.ABORT_RECORD: rp.AbortRecord,
    Label.ANSWER: rp.Answer,
    Label.SUM_CHECK: rp.SumCheck,
    Label.MODEL_REPORT: rp.ModelReport,
    Label.RELAY: rp.RelayItem,
}
"""What is signed under each label."""


def raw(message) -> bytes:
    return message.SerializeToString(deterministic=True)


def envelope(data: bytes) -> Signed:
    """As gRPC hands it over: bytes that are no message never reach a handler."""
    return message(Signed, data)


def message(kind, data):
    try:
        return kind.FromString(data)
    except Exception as error:
        # Only protobuf's own DecodeError is a refusal; anything else escapes as a crash.
        if type(error).__name__ != "DecodeError":
            raise
        raise FormatError("not a message") from error


def _record(label, kinds, corpus, check, *, weight=10, suffix=""):
    """Registers a target for envelopes with that label, of studies with these parameter sets."""

    @target(f"record {label.name.lower()}{suffix}", covers=[f"label {label.name}"], weight=weight)
    def make():
        mutator = Mutator(consortium().keys)
        seeds = [raw(signed) for kind in kinds for signed in corpus(study(kind))]

        def run(data):
            signed = envelope(data)
            refused = None
            for kind in kinds:
                try:
                    check(signed, study(kind))
                    return
                except FormatError as error:
                    refused = error
                except Exception as error:
                    if type(error).__module__ != "cipherward.errors":
                        raise
                    refused = error
            raise refused

        return run, seeds, mutator.of(Envelope(label, ENVELOPES[label]))


BOTH, QUORUM = ("q32", "seal-4096-48"), ("q32",)

_record(
    Label.ROUND_RECORD,
    BOTH,
    lambda s: [s.opening],
    lambda signed, s: verify_round_record(signed, s.trust, 1),
)
_record(
    Label.JOIN,
    BOTH,
    lambda s: list(s.joins.values()),
    lambda signed, s: verify_join(signed, s.trust, s.opened, 1, signed.signer.rpartition("/")[2]),
    weight=20,
)
_record(
    Label.PLAN_RECORD,
    BOTH,
    lambda s: [s.signed_plan],
    lambda signed, s: verify_plan(signed, s.trust, s.opened, 1),
    weight=20,
)
_record(
    Label.COMMIT,
    BOTH,
    lambda s: list(s.commits.values()),
    lambda signed, s: verify_commit(signed, s.trust, s.plan, signed.signer.rpartition("/")[2]),
)
_record(
    Label.CLOSE_RECORD,
    BOTH,
    lambda s: [s.signed_close],
    lambda signed, s: verify_close(signed, s.trust, s.plan, s.transcript),
    weight=20,
)
_record(
    Label.ABORT_RECORD,
    BOTH,
    lambda s: [s.signed_abort],
    lambda signed, s: verify_abort(signed, s.trust, 1, s.transcript),
)
_record(
    Label.MODEL_REPORT,
    BOTH,
    lambda s: [s.report],
    lambda signed, s: verify_model_report(signed, s.trust, 1, signed.signer.rpartition("/")[2]),
)
_record(
    Label.ACKNOWLEDGEMENT,
    QUORUM,
    lambda s: [s.acknowledgement],
    lambda signed, s: verify_acknowledgement(signed, s.trust, s.plan, signed.signer.rpartition("/")[2]),
)
_record(
    Label.ANSWER,
    QUORUM,
    lambda s: list(s.answers.values()),
    lambda signed, s: verify_answer(
        signed, s.trust, s.plan, s.close_digest, signed.signer.rpartition("/")[2]
    ),
)


def _sum_check(signed, s):
    name = signed.signer.rpartition("/")[2]
    found = verify_sum_check(signed, s.trust, s.plan, s.close_digest, len(s.sum), name)
    coverage({name: found}, 1, len(s.sum))


_record(Label.SUM_CHECK, QUORUM, lambda s: [s.check], _sum_check)


@target("record relay", covers=["label RELAY"])
def _relay():
    rounds = [study(one) for one in ("q32", "seal-4096-48")]
    seeds = [raw(rounds[0].relay(rp.RelayItem.KIND_MODEL)[0].item)]
    seeds += [raw(rounds[1].relay(kind)[0].item) for kind in (1, 2)]

    def run(data):
        signed = envelope(data)
        verify_relay(signed, rounds[len(signed.payload) % 2].trust, "bert")

    return run, seeds, Mutator(consortium().keys).of(Envelope(Label.RELAY, rp.RelayItem))


@cache
def manifests():
    """Version 1 of each kind of study, and version 2 of one, valid."""
    world = consortium()
    first = study("q32")
    second = world.manifest(
        "quorum", "q32", version=2, previous_digest=first.trust.digest, first_round=2, rounds=9
    )
    plain = world.manifest("quorum", "q32", study="plain", dp_disabled=True, dp=None)
    plain.plain.CopyFrom(
        sp.PlainTraining(
            steps=1,
            learning_rate=0.1,
            sampling_rate=0.5,
            metrics=sp.MetricsPolicy(loss_bound=1.0, scale=1.0),
        )
    )
    more = [world.root.sign(Label.MANIFEST, one) for one in (second, plain)]
    return [study(one).signed_manifest for one in ("q32", "q16", "seal-4096-48")] + more


def check_manifest_of(signed: Signed) -> None:
    """All that a site does with a manifest before it looks at its own policy."""
    world, first = consortium(), study("q32").trust
    trust = verify_manifest(signed, world.anchor)
    trust_statement(trust.manifest)
    require_member(trust, world.credentials["anna"])
    if trust.manifest.version > 1:
        verify_successor(first, trust)


@target("record manifest", covers=["label MANIFEST"], weight=30)
def _manifest():
    return (
        lambda data: check_manifest_of(envelope(data)),
        [raw(one) for one in manifests()],
        Mutator(consortium().keys).of(Envelope(Label.MANIFEST, sp.Manifest)),
    )


@target("record operator order", covers=["label OPERATOR_COMMAND", "label CREDENTIAL"])
def _order():
    world = consortium()
    inside = {("OperatorOrder", "credential"): Envelope(Label.CREDENTIAL, ip.Credential)}
    order = sp.OperatorOrder(
        command=world.sign(
            "olga",
            Label.OPERATOR_COMMAND,
            sp.OperatorCommand(action=2, manifest_digest=bytes(32), reason="why", issued_at=1),
        ),
        credential=world.credentials["olga"].signed,
    )

    def run(data):
        got = message(sp.OperatorOrder, data)
        credential = verify_credential(got.credential, world.anchor, NOW, world.status, Role.OPERATOR)
        verify(got.command, Label.OPERATOR_COMMAND, credential.signing_key, sp.OperatorCommand)

    return run, [raw(order)], Mutator(world.keys, inside).of(sp.OperatorOrder)


@target("record credential", covers=["label CREDENTIAL"], weight=15)
def _credential():
    world = consortium()

    def run(data):
        found = verify_credential(envelope(data), world.anchor, NOW, world.newer, Role.SITE)
        found.days_left(NOW)
        str(found.expiry)

    seeds = [raw(one.signed) for one in world.credentials.values()]
    return run, seeds, Mutator(world.keys).of(Envelope(Label.CREDENTIAL, ip.Credential))


@target("record request", covers=["label REQUEST"], weight=15)
def _request():
    world = consortium()
    return (
        lambda data: void(verify_request(envelope(data)).fingerprint),
        [raw(one) for one in world.requests.values()],
        Mutator(world.keys).of(Envelope(Label.REQUEST, ip.MemberRequest)),
    )


@target("record anchor", covers=["label ANCHOR"])
def _anchor():
    world = consortium()
    return (
        lambda data: void(Anchor.from_signed(envelope(data)).root_pem),
        [raw(world.anchor.signed)],
        Mutator(world.keys).of(Envelope(Label.ANCHOR, ip.Anchor)),
    )


@target("record status list", covers=["label STATUS_LIST"])
def _status():
    world = consortium()

    def run(data):
        checker = StatusChecker(world.anchor, world.status.signed, lambda signed: None)
        checker.offer(envelope(data))
        checker.check(5, "anna")

    seeds = [raw(world.status.signed), raw(world.newer.signed)]
    return run, seeds, Mutator(world.keys).of(Envelope(Label.STATUS_LIST, ip.StatusList))


# What the coordinator hands from member to member


@target("reply ShareMessage", covers=["reply ShareMessage", "label COMMIT"])
def _share():
    s = study("q32")

    def run(data):
        check_share(message(cp.ShareMessage, data), s.trust, s.plan, "bert")

    seeds = [raw(s.share_message(dealer, "bert")) for dealer in SITES]
    return run, seeds, Mutator(consortium().keys).of(cp.ShareMessage)


@target("reply AnswerMessage", covers=["reply AnswerMessage", "label ANSWER"])
def _answer():
    s = study("q32")

    def run(data):
        check_answer_key(message(cp.AnswerMessage, data), s.trust, s.plan, s.close_digest, "bert")

    seeds = [raw(s.answer_message(member, "bert")) for member in SITES]
    return run, seeds, Mutator(consortium().keys).of(cp.AnswerMessage)


@target("reply DataChunk", covers=["reply DataChunk"])
def _chunk():
    s = study("q32")

    def run(data):
        check_update_chunk(message(cp.DataChunk, data), s.close, s.close.contributions[1])

    seeds = [raw(s.update_chunk("bert", index)) for index in range(2)]
    return run, seeds, Mutator({}).of(cp.DataChunk)


@target("error detail", covers=["reply ErrorDetail"])
def _detail():
    from cipherward.site_agent.client.errors import _from_detail

    def run(data):
        raise _from_detail(data)

    seeds = [
        raw(ErrorDetail(code=code, what="it is", why="so", fix="Do"))
        for code in ("CW-310", "CW-600", "CW-700", "CW-900", "")
    ]
    return run, seeds, Mutator({}).of(ErrorDetail)


def void(_: object) -> None:
    """What it gives is of no interest, only that it does."""
