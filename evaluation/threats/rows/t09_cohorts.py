"""T09: cohorts that are no cohorts. What a site is shown: manifests, plans, close records, shares; each must be refused
by the site itself, whoever signed it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cipherward.crypto import manifest, quorum_records, records
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import require_member, verify_manifest
from cipherward.crypto.quorum import shamir
from cipherward.crypto.quorum.decoding import PRIME
from cipherward.crypto.quorum_records import SHARE_BYTES
from cipherward.crypto.records import verify_close, verify_commit, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import verify
from cipherward.errors import CipherwardError
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.parties import HUB, SITE, Parties, Round, contribution, vectors
from cipherward.evaluation.threats.kit.service import Consortium, study_file
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import Manifest

LENGTH = 24
ONE_UPDATE = 1e-5
"""What opens this near to one update is that update: values are of the order of 1."""
NAMES = ("alpha", "beta", "gamma", "delta")


def _said(action: Callable[[], object]) -> str:
    """Empty if it was accepted."""
    try:
        action()
    except CipherwardError as error:
        return str(error)
    return ""


def _nothing(*_: Any) -> None:
    """In the place of a check."""


# Manifests, signed by the consortium's root


class _Admin(Consortium):
    """An admin who signs anything."""

    def signed(self, change: Callable[[Manifest], None]) -> Signed:
        """A manifest that was right before the change."""
        _, trust = self.sign_manifest(study_file("quorum", ""), np.zeros(23, np.float32))
        made = Manifest.FromString(trust.manifest.SerializeToString())
        change(made)
        return self._root.sign(Label.MANIFEST, made)


def _cohort_of_one(made: Manifest) -> None:
    made.minimum_cohort = 1


def _threshold_one(made: Manifest) -> None:
    made.threshold = 1


def _empty_roster(made: Manifest) -> None:
    del made.roster[:]


def _one_hospital_thrice(made: Manifest) -> None:
    for sybil in made.roster[2:]:
        sybil.signing_key = made.roster[1].signing_key


def _same_name_twice(made: Manifest) -> None:
    made.roster[1].name = made.roster[0].name


def _too_many_colluders(made: Manifest) -> None:
    made.colluders = 3


def _someone_elses_key(made: Manifest) -> None:
    made.roster[0].signing_key, made.roster[0].sealing_key = (
        made.roster[0].signing_key[::-1],
        made.roster[0].sealing_key,
    )


MANIFESTS: tuple[tuple[str, Callable[[Manifest], None]], ...] = (
    ("a minimum cohort of one", _cohort_of_one),
    ("a threshold of one", _threshold_one),
    ("an empty roster", _empty_roster),
    ("one hospital under three names (Sybil)", _one_hospital_thrice),
    ("a name twice in the roster", _same_name_twice),
    ("more colluders than the threshold withstands", _too_many_colluders),
    ("another signing key in the site's own name", _someone_elses_key),
)


def _manifests(folder: Path, opened: dict[str, float]) -> list[Case]:
    """``opened``: by manifest, how far from one update is what such a study opens, its rules being taken out."""
    folder.mkdir(parents=True)
    admin = _Admin(folder)
    for name in NAMES:
        admin.enrol(name)
    own = admin.member(Role.SITE, NAMES[0])
    cases = []
    for what, change in MANIFESTS:
        signed = admin.signed(change)

        def admit(signed: Signed = signed) -> None:
            require_member(verify_manifest(signed, own.anchor), own.credential)

        with replaced(manifest, "check_manifest", _nothing):
            off = _said(lambda signed=signed: verify_manifest(signed, own.anchor))  # type: ignore[misc]
        error = opened.get(what)
        shown = "" if error is None else f"; in such a study one hospital's update is opened, to {error:.1e}"
        cases.append(
            Case(
                f"a manifest with {what}",
                off or f"the root's signature is right: taken{shown}",
                not off and (error is None or error <= ONE_UPDATE),
                _said(admit),
                False,
            )
        )
    return [_held(case) for case in cases]


def _opened_alone(played: Round, colluders: tuple[str, ...], trained: Any) -> float:
    """How far what the coordinator and these colluders open of the first site's upload is from its update: with the
    shares dealt to them alone, before any sum is made."""
    victim, params = played.members[0], played.parties.params
    shares = {played.plan.places[one] + 1: played.opened_share(victim, one) for one in colluders}
    combined = next(SITE.combine(params, shares, played.plan.threshold, 1))
    opened = played.open_with(combined.key, played.uploads[victim].chunks, 1)
    return float(np.abs(opened - trained[victim]).max())


def _constant(secret: Any, threshold: int, members: int, stream: Any) -> list[bytes]:
    """Shares with threshold 1: a polynomial of degree 0."""
    return [(secret % PRIME).astype("<u4").tobytes()] * members


def _consequences(seed: int) -> dict[str, float]:
    """What the manifests that matter lead to, the rules of plans and close records being taken out as well."""
    found = {}
    # One colluder's share is the key where t = 1. The sharing refuses such a t by itself: that is out as well.
    with (
        replaced(records, "_check_quorum_of", lambda trust, joined: trust.manifest.threshold),
        replaced(shamir, "split", _constant),
    ):
        parties = Parties(4, length=LENGTH, threshold=1)
        played, trained = Round(parties, parties.names), vectors(parties.names, LENGTH, seed + 3)
        played.upload(parties.names[0], trained[parties.names[0]])
        found["a threshold of one"] = _opened_alone(played, parties.names[3:], trained)
    # One hospital has the round keys of three names, and so t of four shares.
    parties = Parties(4, length=LENGTH)
    played, trained = Round(parties, parties.names), vectors(parties.names, LENGTH, seed + 4)
    for name in parties.names:
        played.upload(name, trained[name])
    found["one hospital under three names (Sybil)"] = _opened_alone(played, parties.names[1:], trained)
    # A sum of one: what every other member opens, honestly, is that update.
    with ExitStack() as stack:
        _take_out_needs(stack)
        victim, *others = parties.names
        opened = played.open_sum((victim,), others, others[0])
    found["a minimum cohort of one"] = float(np.abs(opened - trained[victim]).max())
    return found


def _held(case: Case) -> Case:
    return Case(
        case.name, case.control, case.control_worked, case.defended or "taken", held=bool(case.defended)
    )


# Plans and close records, signed by the coordinator


def _plan(played: Round, change: Callable[[rp.PlanRecord], None]) -> Signed:
    record = rp.PlanRecord(
        manifest_digest=played.parties.trust.digest,
        round_record_digest=played.plan.round_record_digest,
        round=played.number,
        joins=played.joins,
    )
    change(record)
    return played.parties.sign(HUB, Label.PLAN_RECORD, record)


def _verified(played: Round, signed: Signed) -> Any:
    return verify_plan(signed, played.parties.trust, played.plan.round_record_digest, played.number)


def _swap(played: Round, signer: str | None) -> tuple[Callable[[rp.PlanRecord], None], dict[int, SealingKey]]:
    """The coordinator's round keys in all names but the first; who signs the changed joins."""
    keys = {place: SealingKey.generate() for place in range(1, len(played.members))}

    def change(record: rp.PlanRecord) -> None:
        for place, key in keys.items():
            old = record.joins[place]
            join = rp.Join.FromString(old.payload)
            join.round_key = key.public()
            made = (
                Signed(payload=join.SerializeToString(), signature=old.signature)
                if signer is None
                else played.parties.sign(signer, Label.JOIN, join)
            )
            made.signer = old.signer
            old.CopyFrom(made)

    return change, keys


def _swapped_keys(parties: Parties, seed: int) -> list[Case]:
    """Without the signatures on joins the coordinator opens an update that is dealt under such a plan."""
    played = Round(parties, parties.names)
    victim, trained = parties.names[0], vectors(parties.names, LENGTH, seed)
    change, keys = _swap(played, None)
    signed = _plan(played, change)

    def unsigned(item: Signed, label: Label, key: bytes, kind: Any) -> Any:
        return kind.FromString(item.payload) if label is Label.JOIN else verify(item, label, key, kind)

    with replaced(records, "verify", unsigned):
        played.plan = _verified(played, signed)
        upload = played.encrypt(victim, trained[victim])
    dealing = played.dealing(victim, rp.Commit.FromString(upload.commit.payload).ciphertext_root)
    shares = {place + 1: dealing.open(place, key, upload.sealed[place]) for place, key in keys.items()}
    combined = next(SITE.combine(parties.params, shares, played.plan.threshold, 1))
    error = float(np.abs(played.open_with(combined.key, upload.chunks, 1) - trained[victim]).max())
    cases = []
    for signer in (None, HUB, victim):
        attacked = Round(parties, parties.names)
        how = {None: "with the old signatures", HUB: "signed by the coordinator"}.get(
            signer, "signed by a colluder"
        )
        told = _said(lambda: _verified(attacked, _plan(attacked, _swap(attacked, signer)[0])))  # noqa: B023
        cases.append(
            Case(
                f"round keys swapped for the coordinator's own, {how}",
                control=f"the coordinator alone opens an update, to {error:.1e}",
                control_worked=error <= parties.params.error_bound(1),
                defended=told,
                held=False,
            )
        )
    return cases


def _checking(message: cp.ShareMessage, played: Round, member: str) -> Callable[[], object]:
    return lambda: quorum_records.check_share(message, played.parties.trust, played.plan, member)


def _resealed(parties: Parties, seed: int) -> Case:
    """Shares of zero in all other dealers' names: the answers then add up to the key of one update."""
    played, trained = Round(parties, parties.names), vectors(parties.names, LENGTH, seed + 1)
    for name in parties.names:
        played.upload(name, trained[name])
    victim, receiver = parties.names[0], parties.names[-1]
    told = ""
    answers: dict[int, bytes] = {}
    for place, member in enumerate(played.members):
        vector = [played.opened_share(victim, member)]
        for dealer in parties.names[1:]:
            honest = played.share_message(dealer, member)
            commit = rp.Commit.FromString(honest.commit.payload)
            dealing = played.dealing(dealer, commit.ciphertext_root)
            forged = dealing.seal(played.public_keys, [bytes(SHARE_BYTES)] * len(played.members))[place]
            message = cp.ShareMessage(
                sealed=forged, index=honest.index, inclusion=honest.inclusion, commit=honest.commit
            )
            told = _said(_checking(message, played, member))
            # Control: the seal alone, and the signed commit, but not that one lies under the other.
            verify_commit(message.commit, parties.trust, played.plan, dealer)
            vector.append(dealing.open(place, played.round_keys[member], forged))
        answers[place + 1] = SITE.add_shares(parties.params, vector)
    combined = next(SITE.combine(parties.params, answers, played.plan.threshold, 1))
    opened = played.open_with(combined.key, played.uploads[victim].chunks, 1)
    error = float(np.abs(opened - trained[victim]).max())
    return Case(
        "sealed shares replaced by zeros in other sites' names",
        control=f"{receiver} and the coordinator open one update, to {error:.1e}",
        control_worked=error <= parties.params.error_bound(1),
        defended=told,
        held=False,
    )


def _take_out_needs(stack: ExitStack, threshold: int | None = None) -> None:
    stack.enter_context(replaced(records, "_need", _nothing))
    if threshold is not None:
        stack.enter_context(replaced(records, "_check_quorum_of", lambda trust, joined: threshold))


def _without_needs(action: Callable[[], object]) -> str:
    with ExitStack() as stack:
        _take_out_needs(stack, 1)
        return _said(action)


def _plan_for_one(parties: Parties, seed: int) -> float:
    """What the only member of a plan opens and hands on as the model's step: how far it is from its own update."""
    name = parties.names[0]
    trained = vectors([name], LENGTH, seed + 5)
    with ExitStack() as stack:
        _take_out_needs(stack, 1)
        played = Round(parties, [name])
        played.upload(name, trained[name])
        opened = played.open_sum((name,), (name,), name)
    return float(np.abs(opened - trained[name]).max())


def _small(parties: Parties, seed: int) -> list[Case]:
    """Plans and close records over too few, or over one twice."""
    played, trained = Round(parties, parties.names), vectors(parties.names, LENGTH, seed + 2)
    for name in parties.names:
        played.upload(name, trained[name])

    def alone(record: rp.PlanRecord) -> None:
        del record.joins[1:]

    def twice(record: rp.PlanRecord) -> None:
        record.joins[1].CopyFrom(record.joins[0])

    def close(*who: str) -> Signed:
        record = rp.CloseRecord(
            manifest_digest=parties.trust.digest,
            plan_digest=played.plan.digest,
            round=1,
            contributions=[contribution(played.uploads[name].commit) for name in who],
            sum_root=bytes(32),
            sum_chunk_count=2,
            previous_transcript=played.transcript,
        )
        return parties.sign(HUB, Label.CLOSE_RECORD, record)

    one, two, *_ = parties.names
    shown: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a plan for one site", lambda: _verified(played, _plan(played, alone))),
        ("a plan that names a site twice", lambda: _verified(played, _plan(played, twice))),
        (
            "a close record over one update",
            lambda: verify_close(close(one), parties.trust, played.plan, played.transcript),
        ),
        (
            "a close record that counts an update twice",
            lambda: verify_close(close(one, two, two), parties.trust, played.plan, played.transcript),
        ),
    )
    opened = {
        "a plan for one site": _plan_for_one(parties, seed),
        "a close record over one update": _consequences(seed)["a minimum cohort of one"],
    }
    cases = []
    for what, action in shown:
        off, error = _without_needs(action), opened.get(what)
        more = (
            "" if error is None else f"; what is opened and applied is one hospital's update, to {error:.1e}"
        )
        worked = not off and (error is None or error <= ONE_UPDATE)
        control = off or f"the coordinator's signature is right: taken{more}"
        cases.append(Case(what, control, worked, _said(action), False))
    return cases


def run(context: Context) -> Result:
    """All of them."""
    context.note("manifests")
    cases = _manifests(context.folder / "consortium", _consequences(context.seed))
    parties = Parties(4, length=LENGTH)
    context.note("plans, closes and shares")
    made = [
        *_swapped_keys(parties, context.seed),
        _resealed(parties, context.seed),
        *_small(parties, context.seed),
    ]
    cases += [_held(case) for case in made]
    honest = Round(parties, parties.names)
    taken = not _said(lambda: _verified(honest, _plan(honest, _nothing)))
    result = Result.of_cases(
        cases,
        f"{sum(case.held for case in cases)} of {len(cases)} made-up cohorts were refused by the sites' own checks. "
        "Without the signature on round keys the coordinator alone opens an update; without the dealer's signature on "
        "shares it does so with one site.",
        defended={"an honest plan is accepted": taken},
        notes=(
            "Hospitals that the consortium's admin invents, with keys of their own, cannot be told from real ones by "
            "any check: compare the roster with the hospitals that you know. A hospital's policy sets how large a "
            "cohort and a threshold it wants.",
            "The same with whole agents: tests/attacks/test_attack_swapped_keys.py, test_attack_resealed_shares.py.",
        ),
    )
    # A check that refuses everything would pass all of the above.
    return replace(result, held=result.held and taken)


ROW = Row(
    id="T09",
    title="made-up cohorts: of one, Sybil sites, swapped keys, threshold 1",
    adversary="A coordinator, and for manifests an admin of the consortium, who sign what they like.",
    holds="The coordinator's signing key; for manifests the root's; everything that was sent.",
    source="Reproduced on Flower 1.41 (2026): one node listed as active and dead, swapped keys, threshold 1 are "
    "accepted; for swapped keys in general Pasquini, Francati, Ateniese, CCS 2022.",
    metric="how many a site accepts",
    passes="none",
    seeds=(9,),
    fast_seconds=5,
    full_seconds=10,
    run=run,
)
