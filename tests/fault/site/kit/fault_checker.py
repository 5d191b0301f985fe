"""Whether a finished study computed what it should: every model of it is made anew from the updates that the sites
journalled, and compared within the suite's predicted error.

Nothing is taken from the sites but their journals and the copies of trained updates: who contributed is what the
coordinator's signed close records say, and the sums are added up here, in float64.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cipherward.coordinator.daemon.folder import database_url
from cipherward.coordinator.rounds.state import Life
from cipherward.coordinator.store.database import MIGRATIONS, Transaction
from cipherward.coordinator.store.studies import COMMIT
from cipherward.crypto.labels import Label, digest
from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.records import verify_abort, verify_close, verify_plan, verify_round_record
from cipherward.crypto.signing import record_digest, verify
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.transcript import model_digest, transcript_next, transcript_start
from cipherward.database import reading
from cipherward.errors import VerificationError
from cipherward.ids import Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import RECORD_KIND_CLOSE, RECORD_KIND_PLAN, RECORD_KIND_ROUND
from cipherward.proto.v1.round_pb2 import AbortRecord, Commit
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.strategy.registry import strategy_of


@dataclass(frozen=True)
class Round:
    """One that ended: U of its close record (none: it was aborted), and whether a model came of it."""

    number: int
    contributors: tuple[str, ...]
    opened: bool


class _Journal:
    """What one site journalled of the study."""

    def __init__(self, folder: Path, study: str) -> None:
        self._folder = folder
        with sqlite3.connect(folder / "state.db") as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM rounds WHERE study = ?", (study,)).fetchall()
            self.rounds = {row["round"]: row for row in rows}
            self.study = connection.execute("SELECT * FROM studies WHERE study = ?", (study,)).fetchone()
            kinds = "SELECT count(*) FROM ledger_events WHERE kind = 'reserve' AND study = ?"
            self.reserved = connection.execute(kinds, (study,)).fetchone()[0]

    def update(self, number: int, committed: Commit) -> np.ndarray:
        """The vector behind a commit that counts, float64."""
        row = self.rounds[number]
        posted = Signed.FromString(row["commit_record"])
        assert Commit.FromString(posted.payload) == committed, "the journal has another commit"
        content = (self._folder / "kept" / "updates" / f"{row['update_digest'].hex()}.f32").read_bytes()
        assert digest(Label.FILE_DIGEST, content) == row["update_digest"]
        return np.frombuffer(content, "<f4").astype(np.float64)


def check_study(world, study: str, *, names=None, min_opened: int = 1) -> list[Round]:
    """Check a finished study of ``world`` (a ``Consortium``) at the coordinator and the sites ``names`` (default:
    all); returns its rounds."""
    names = names or world.names
    journals = {name: _Journal(world.folder / name, study) for name in world.names}
    models = {name: ModelStore(world.folder / name / "kept" / "models") for name in world.names}
    coordinator = world.member(Role.COORDINATOR, "hub")
    with reading(database_url(world.folder / "hub"), MIGRATIONS, "the study is checked") as connection:
        t = Transaction.on(connection)
        [row] = [each for each in t.studies.all() if each.study == study]
        [signed] = t.studies.manifests(study)
        trust = verify_manifest(signed, coordinator.anchor)
        kinds = (RECORD_KIND_ROUND, RECORD_KIND_PLAN, RECORD_KIND_CLOSE)
        last = row.state.round
        records = {
            number: [t.studies.record(study, number, kind) for kind in kinds] for number in range(1, last + 1)
        }
        commits = {number: t.studies.round_posts(study, number, COMMIT) for number in records}
    assert row.state.life is Life.FINISHED, row.state.reason

    transcript, spent, rounds = transcript_start(study, trust.digest), set(), []
    following = {}
    for number, (opened, _, _) in records.items():
        following[number - 1] = verify_round_record(opened, trust, number).model_digest
    following[last] = row.state.model
    assert following[0] == trust.manifest.initial_weights_digest
    for number, (opened, planned, ended) in records.items():
        opening = record_digest(Label.ROUND_RECORD, opened)
        before, after = following[number - 1], following[number]
        try:
            verify(ended, Label.ABORT_RECORD, trust.manifest.coordinator.signing_key, AbortRecord)
        except VerificationError:
            plan = verify_plan(planned, trust, opening, number)
            close = verify_close(ended, trust, plan, transcript)
            transcript = transcript_next(transcript, record_digest(Label.CLOSE_RECORD, ended))
        else:
            verify_abort(ended, trust, number, transcript)
            transcript = transcript_next(transcript, record_digest(Label.ABORT_RECORD, ended))
            assert before == after, "a model came of an aborted round"
            rounds.append(Round(number, (), opened=False))
            continue
        total = np.zeros(trust.manifest.parameter_count)
        cohort = tuple(item.site for item in close.contributions)
        for item in close.contributions:
            assert item.commit.payload == commits[number][item.site].payload
            committed = Commit.FromString(item.commit.payload)
            row_of = journals[item.site].rounds[number]
            assert row_of["update_digest"] not in spent, "an update was committed in two rounds"
            spent.add(row_of["update_digest"])
            vector = journals[item.site].update(number, committed)
            assert vector[-1] == 1.0
            total += vector[: total.size]
        if before != after:
            _check_step(trust, models, before, after, total, cohort)
        rounds.append(Round(number, cohort, opened=before != after))
    assert transcript == row.transcript
    for name in names:
        ours = journals[name].study
        assert (ours["state"], ours["transcript_round"]) == ("finished", last), name
        assert ours["transcript"] == transcript, f"{name} has another transcript"
        assert ours["model_digest"] == row.state.model, f"{name} has another model"
        weights = ModelStore(world.folder / name / "models").get(row.state.model)
        assert model_digest(weights) == row.state.model
        took_part = sum(entry["started"] is not None for entry in journals[name].rounds.values())
        assert journals[name].reserved == took_part, (
            f"{name} paid {journals[name].reserved} for {took_part} rounds"
        )
    assert sum(each.opened for each in rounds) >= min_opened, rounds
    return rounds


def _check_step(trust, models, before, after, total, cohort) -> None:
    """The strategy's step with the exact sum, against the model that the sites have."""
    old, new = _anywhere(models, before), _anywhere(models, after)
    strategy = trust.manifest.strategy
    rate = _rate(trust.manifest, cohort)
    if strategy.name == "fedadam":
        old, new = _first_moments(strategy, old, new, total.size)
        rate *= 1 - strategy.beta1
    wanted = old.astype(np.float64) + rate * total
    rounding = np.spacing(np.abs(new)).astype(np.float64) + abs(rate) * np.spacing(
        np.abs(total.astype(np.float32))
    )
    allowed = abs(rate) * trust.params.error_bound(len(cohort)) + rounding
    assert (np.abs(new - wanted) <= allowed).all(), (
        f"off by {np.abs(new - wanted).max()}, {allowed.min()} allowed"
    )
    # Q16 is made for values that are nearly all noise.
    least = 4 if strategy.name == SHARED_NOISE else 100
    assert np.abs(new - old).max() > least * allowed.max(), (
        "the step is no larger than its error: this shows nothing"
    )


def _rate(manifest, cohort):
    """What the model, or its first moment, moves by for 1 in the sum."""
    if manifest.strategy.name == SHARED_NOISE:
        divisors = sum(site.batch_divisor for site in manifest.roster if site.name in cohort)
        honest = manifest.minimum_cohort - manifest.colluders
        share = manifest.dp.noise_multiplier * manifest.dp.clipping_norm / honest**0.5
        unit = manifest.strategy.noise_range * share
        return -manifest.strategy.server_learning_rate * manifest.dp.learning_rate * unit / divisors
    scales = sum(strategy_of(manifest).upload_scale(manifest, site) for site in cohort)
    return (1.0 if manifest.strategy.name == "fedadam" else manifest.strategy.server_learning_rate) / scales


def _first_moments(strategy, old, new, size):
    """FedAdam's m, decayed, and the new one; weights and v follow from it, but for rounding to float32."""
    if old.size == size:
        old = np.concatenate([old, np.zeros(size), np.full(size, strategy.tau**2)]).astype(np.float32)
    x, m, v = old.astype(np.float64).reshape(3, size)
    after, mean, squares = new.astype(np.float64).reshape(3, size)
    delta = (mean - strategy.beta1 * m) / (1 - strategy.beta1)
    assert np.allclose(squares, strategy.beta2 * v + (1 - strategy.beta2) * delta**2, rtol=1e-4, atol=1e-9)
    step = strategy.server_learning_rate * mean / (np.sqrt(squares) + strategy.tau)
    assert np.allclose(after, x + step, rtol=1e-5, atol=1e-6)
    return (strategy.beta1 * m).astype(np.float32), new[size : 2 * size]


def _anywhere(models, wanted):
    for store in models.values():
        if store.path(wanted).exists():
            return store.get(wanted)
    raise AssertionError(f"no site has the model {wanted.hex()[:16]}")
