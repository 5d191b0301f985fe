"""A coordinator that would have one hospital train from another model than the rest; and hospitals that differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cipherward.clock import SystemClock
from cipherward.coordinator.audit.source import Source
from cipherward.crypto import records as verification
from cipherward.crypto.labels import Label
from cipherward.crypto.records import StudyTrust, verify_plan
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import model_digest
from cipherward.errors import UnavailableError, UsageError, VerificationError
from cipherward.evaluation.threats.attacks import images, intervals, suppression, vision
from cipherward.evaluation.threats.bypass import replaced
from cipherward.evaluation.threats.kit.hospital import (
    NAMES,
    PARAMETERS,
    STUDY,
    Hospitals,
    PlayedCoordinator,
    client_of,
    participation,
)
from cipherward.evaluation.threats.kit.real_study import RealStudy
from cipherward.evaluation.threats.plots import images as pictures
from cipherward.evaluation.threats.row import Case, Context, Figure, Picture, Result, Row
from cipherward.evaluation.threats.statistics import proportion
from cipherward.ids import Role
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.round_pb2 import Join, ModelReport, PlanRecord
from cipherward.site_agent.daemon import admission
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.offline import open_offline
from cipherward.site_agent.state import models
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore

_HIDDEN, _SITES, _RECOVERED_DB = 64, 4, 20.0
_ROUNDS = 5
_TAMPERED, _LIAR = NAMES[0], NAMES[1]
_OTHER = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)


def _refusal(what: Callable[[], Any]) -> str:
    """Why it was refused; empty if it was not."""
    try:
        what()
    except VerificationError as error:
        return error.what
    return ""


def _case(name: str, control: str, defended: str) -> Case:
    return Case(name, control or "taken", not control, defended or "taken", bool(defended))


def _in_clear(context: Context) -> tuple[dict[str, Figure], bool, str, list[Picture]]:
    """What different models would give: sums over four hospitals that hold one's image."""
    found = images.chosen()
    rng = np.random.default_rng(context.seed)
    task = vision.VisionTask(found, _HIDDEN)
    honest = vision.initial(task, context.seed)
    starts = [honest, *([suppression.dead(task, honest)] * (_SITES - 1))]
    count, isolated = 50 if context.fast else 200, 0
    shown: list[Picture] = []
    for place in range(count):
        patients = rng.choice(len(found.labels), _SITES, replace=False)
        gradient = suppression.summed_gradient(task, found, starts, patients)
        image = suppression.read_image(gradient, _HIDDEN, found.side)
        isolated += images.psnr(image, found.pixels[patients[0]]) > _RECOVERED_DB
        if place < 2:
            row = {"the victim's image": found.pixels[patients[0]], "read from the sum of four": image}
            shown += pictures(f"round {place + 1}", row, pixels=90)
    share = proportion(isolated, count, intervals.SURE)
    figures: dict[str, Figure] = {
        "sums of four, models differ": count,
        "share in which the victim's image is read with PSNR above 20 dB": share,
    }
    return figures, share.low > 0.5, f"{share.value:.0%}", shown


def _initial(world: Hospitals, signed: Signed, trust: StudyTrust) -> Case:
    """Two hospitals get two other models in the place of the first."""
    pinned, taken = trust.manifest.initial_weights_digest, []
    for name, weights in ((NAMES[0], _OTHER), (NAMES[1], -_OTHER)):
        played = PlayedCoordinator([signed], weights.astype("<f4").tobytes())
        with (
            world.agent(name) as site,
            replaced(admission, "model_digest", lambda _: pinned),
            replaced(models, "model_digest", lambda _: pinned),
        ):
            admission.admit(site, client_of(played), STUDY, trust.digest)
            taken.append(bool((site.models.get(pinned) == weights).all()))
    played = PlayedCoordinator([signed], _OTHER.astype("<f4").tobytes())
    with world.agent(NAMES[2]) as site:
        refused = _refusal(lambda: admission.admit(site, client_of(played), STUDY, trust.digest))
    return _case("another model in the place of the first", "" if all(taken) else "not taken", refused)


def _opening(world: Hospitals, signed: Signed, trust: StudyTrust) -> Case:
    """One hospital's round record names another model than the one that it has."""
    name = NAMES[3]
    played = PlayedCoordinator([signed], bytes(4 * PARAMETERS))
    with world.agent(name) as site:
        admission.admit(site, client_of(played), STUDY, trust.digest)
        study, steps = participation(site, played)
        for number in (1, 2):
            record = world.opening(trust, number, model_digest(_OTHER), study.row().transcript)
            played.records[number, pb.RECORD_KIND_ROUND] = record
        refused = _refusal(lambda: steps.train_and_join(1))
        with replaced(Participation, "check_opening", lambda *_: None):
            taken = _refusal(lambda: participation(site, played)[1].train_and_join(2))
        joined = len(played.joins)
    return _case("a round record that names another model", taken if joined else "not joined", refused)


def _two_openings(world: Hospitals, trust: StudyTrust) -> Case:
    """Half of the hospitals joined one opening of the round, half another: one plan over both."""
    start = bytes(32)
    openings = [
        world.opening(trust, 1, digest, start) for digest in (model_digest(_OTHER), model_digest(-_OTHER))
    ]
    digests = [record_digest(Label.ROUND_RECORD, opening) for opening in openings]
    joins = []
    for place, name in enumerate(sorted(NAMES)):
        member = world.consortium.member(Role.SITE, name)
        join = Join(
            manifest_digest=trust.digest,
            round_record_digest=digests[place % 2],
            round=1,
            site=name,
            round_key=trust.site(name).sealing_key,
            library=trust.params.library,
        )
        joins.append(member.signing_key.sign(Label.JOIN, join, str(member.identity)))
    record = PlanRecord(manifest_digest=trust.digest, round_record_digest=digests[0], round=1, joins=joins)
    plan = world.sign(Label.PLAN_RECORD, record)
    refused = _refusal(lambda: verify_plan(plan, trust, digests[0], 1))

    def lenient(item: Signed, *_: Any) -> Join:
        return Join.FromString(item.payload)

    with replaced(verification, "verify_join", lenient):
        taken = _refusal(lambda: verify_plan(plan, trust, digests[0], 1))
    return _case("one plan over two openings of the round", taken, refused)


def _tamper(study: RealStudy) -> str:
    """Put another model into a hospital's state, and say by digest which."""
    folder = SiteFolder(study.world.consortium.site_folder(_TAMPERED))
    digest = ModelStore(folder.models).put(_OTHER)
    with open_offline(folder.root, SystemClock()) as site:
        row = site.studies.row(STUDY)
        if row is None:
            raise UsageError(f"{_TAMPERED} has no study")
        site.studies.set_model(STUDY, row.model_round, digest)
    return digest.hex()


def _held(study: RealStudy, name: str) -> str:
    """The digest of the model that a hospital has."""
    root = study.world.consortium.site_folder(name)
    with open_offline(root, SystemClock()) as site:
        row = site.studies.row(STUDY)
        return "" if row is None else row.model_digest.hex()


def _wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.1)


def _lied(study: RealStudy, number: int) -> bool:
    """Whether the coordinator has a report of the liar's in that round that nobody else made."""
    posts = Source(study.world.consortium.coordinator).round(STUDY, number).evidence.reports or {}
    told = {name: ModelReport.FromString(signed.payload).model_digest for name, signed in posts.items()}
    return _LIAR in told and all(told[_LIAR] != digest for name, digest in told.items() if name != _LIAR)


def _in_processes(context: Context) -> list[Case]:
    """A study in which one hospital always reports another model, and one is given another in its state."""
    refusal = "another model"
    with RealStudy(context.folder / "study", _ROUNDS, odd={_LIAR: "lying"}) as study:
        study.start()
        context.note("real processes: the first rounds")
        _wait(lambda: study.status().round >= 2, 200, "the second round")
        study.kill(_TAMPERED)
        other = _tamper(study)
        context.note("real processes: the hospital without resynchronisation")
        before = len(study.log(f"site-{_TAMPERED}"))
        study.start_odd(_TAMPERED, "stubborn")
        _wait(lambda: refusal in study.log(f"site-{_TAMPERED}")[before:], 150, "the stubborn agent's refusal")
        stubborn = _held(study, _TAMPERED)
        study.kill(_TAMPERED)
        context.note("real processes: the hospital as shipped")
        study.start_site(_TAMPERED)
        status = study.to_the_end()
    final = {name: _held(study, name) for name in NAMES}
    rounds = [entry for entry in status.history if not entry.aborted]
    agree = len(set(final.values())) == 1
    lies = sum(_lied(study, entry.round) for entry in rounds)
    counted = sum(_TAMPERED in entry.contributors for entry in rounds)
    return [
        Case(
            "a hospital with another model, among hospitals that agree",
            "without resynchronisation it keeps it and sits out",
            stubborn == other,
            "took the others' over and went on" if final[_TAMPERED] != other else "kept it",
            agree and final[_TAMPERED] != other and counted >= 1,
        ),
        Case(
            "one hospital that reports another model in every round",
            f"its report is another than all others' in {lies} of {len(rounds)} rounds",
            lies == len(rounds) > 0,
            f"{len(rounds)} of {_ROUNDS} rounds closed, all hospitals end with one model",
            len(rounds) == _ROUNDS and agree,
        ),
    ]


def run(context: Context) -> Result:
    """What the attack gives, how an agent refuses each way into it, and what becomes of hospitals that differ."""
    context.note("sums over hospitals with different models")
    control, worked, share, shown = _in_clear(context)
    context.note("a real agent and a coordinator that lies to it")
    world = Hospitals(context.folder / "consortium")
    signed, trust = world.manifest(np.zeros(PARAMETERS, dtype=np.float32))
    cases = [_initial(world, signed, trust), _opening(world, signed, trust), _two_openings(world, trust)]
    cases += _in_processes(context)
    found = Result.of_cases(
        cases,
        f"With different models a coordinator would read one hospital's image out of a sum over four in {share} of "
        "rounds. Agents refuse each way to get there; a hospital whose model differs takes the others' over, and one "
        "that always disagrees stops nothing.",
        control=control,
        pictures=shown,
        notes=[
            "Residual risk: hospitals that disagree by more than the manifest's c, or two against two, stop the study; "
            "nothing is then applied."
        ],
    )
    return replace(found, control_worked=found.control_worked and worked)


ROW = Row(
    id="T11",
    title="Different models given to different sites",
    adversary="A coordinator that signs what it likes; one hospital that reports what it likes; a damaged hospital",
    holds="The coordinator's keys; the opened sum in clear, for the control",
    source="Pasquini, Francati and Ateniese, CCS 2022 (gradient suppression); our own review for agreement on models",
    metric="Whether agents go on from another model; rounds closed and models at the end, with one liar and one "
    "hospital that was given another model",
    passes="Other first models, openings that name another model and plans over two openings are refused; all rounds "
    "close and all hospitals end with one model",
    seeds=(11,),
    fast_seconds=45,
    full_seconds=75,
    run=run,
)
