"""The ledger: what it charges, to whom, and that it cannot be talked out of it."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from cipherward.clock import ManualClock
from cipherward.database import make_engine
from cipherward.errors import (
    BudgetError,
    ConflictError,
    EnvironmentProblem,
    FormatError,
    ProtocolError,
    UsageError,
    VerificationError,
)
from cipherward.ids import Digest
from cipherward.site_agent.ledger import cohorts
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import Gaussian, SampledGaussian, epsilon
from cipherward.site_agent.ledger.chain import EMPTY, Head, Kind
from cipherward.site_agent.ledger.encoding import events_from_json, events_to_json
from cipherward.site_agent.ledger.ledger import DataSet, Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.state.metadata import metadata

KEY = bytes(range(32))
MANIFEST = Digest(b"m" * 32)
ROUND = (SampledGaussian(2.0, 0.1, 10), Gaussian(20.0))
DELTA = 1e-5
WARD = [f"p{number}" for number in range(100)]


def open_ledger(path: Path, clock: ManualClock | None = None) -> Ledger:
    engine = make_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    return Ledger(engine, PatientKey(KEY), accountant=LocalAccountant(), clock=clock or ManualClock())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/site.db")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine, PatientKey(KEY), accountant=LocalAccountant(), clock=ManualClock())


def reserve(ledger: Ledger, dataset: str, number: int, *, study: str = "s", ceiling: float = 100.0) -> Head:
    return ledger.reserve(dataset, study, number, ROUND, manifest=MANIFEST, ceiling=ceiling, delta=DELTA)


def cost(rounds: int) -> float:
    return epsilon(ROUND * rounds, DELTA)


# Spending


def test_spending_adds_up_over_studies(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    assert ledger.spent("ward", DELTA) == 0
    reserve(ledger, "ward", 1, study="one")
    reserve(ledger, "ward", 1, study="two")
    assert ledger.spent("ward", DELTA) == cost(2) > cost(1) > 0
    assert ledger.cost_of("ward", ROUND * 3, DELTA) == cost(5)


def test_the_ceiling_holds_to_the_last_round(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    ceiling = cost(3)
    assert ledger.remaining_rounds("ward", ROUND, ceiling, DELTA) == 3
    for number in (1, 2, 3):
        reserve(ledger, "ward", number, ceiling=ceiling)
    before = ledger.head()
    with pytest.raises(BudgetError) as caught:
        reserve(ledger, "ward", 4, ceiling=ceiling)
    # It names spent, ceiling, and what was asked.
    for figure in (cost(3), ceiling, cost(4)):
        assert f"{figure:.4g}" in str(caught.value)
    assert ledger.head() == before
    assert ledger.remaining_rounds("ward", ROUND, ceiling, DELTA) == 0


def test_the_same_reservation_again_is_free_and_another_is_refused(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    first = reserve(ledger, "ward", 1)
    reserve(ledger, "ward", 2)
    assert reserve(ledger, "ward", 1) == first
    assert (
        reserve(ledger, "ward", 1, ceiling=0.0) == first
    )  # a policy that got stricter since changes nothing
    assert ledger.count(Kind.RESERVE, "ward") == 2
    with pytest.raises(ConflictError, match="cost"):
        ledger.reserve("ward", "s", 1, ROUND[:1], manifest=MANIFEST, ceiling=100, delta=DELTA)
    with pytest.raises(ConflictError, match="manifest"):
        ledger.reserve("ward", "s", 1, ROUND, manifest=Digest(b"n" * 32), ceiling=100, delta=DELTA)
    ledger.register("ward", [*WARD, "new"])  # who was not charged must not be trained on
    with pytest.raises(ConflictError, match="patients"):
        reserve(ledger, "ward", 1)


def test_lost_rounds_stay_spent(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    reserve(ledger, "ward", 1)
    with pytest.raises(ProtocolError):
        ledger.mark_lost("ward", "s", 2)
    ledger.mark_lost("ward", "s", 1)
    ledger.mark_lost("ward", "s", 1)
    assert ledger.count(Kind.LOST, "ward") == ledger.count(Kind.LOST, "ward", "s") == 1
    assert ledger.count(Kind.LOST, "ward", "other") == 0
    assert ledger.spent("ward", DELTA) == cost(1)


def test_no_clock_gives_anything_back(tmp_path: Path) -> None:
    clock = ManualClock()
    ledger = open_ledger(tmp_path / "site.db", clock)
    ledger.register("ward", WARD)
    for number, jump in enumerate((0.0, -1e9, 2e9, -1e6), start=1):
        clock.jump(jump)
        reserve(ledger, "ward", number)
    reopened = open_ledger(tmp_path / "site.db", ManualClock(0.0))
    assert reopened.spent("ward", DELTA) == cost(4)
    assert reopened.verify_chain() == ledger.head()


def test_a_release_without_noise_spends_everything(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    with pytest.raises(BudgetError, match="inf"):
        ledger.reserve("ward", "s", 1, [Gaussian(0.0)], manifest=MANIFEST, ceiling=1e9, delta=DELTA)
    # Only a hospital that sets no ceiling at all can agree to it, and then it is on record.
    ledger.reserve("ward", "s", 1, [Gaussian(0.0)], manifest=MANIFEST, ceiling=math.inf, delta=DELTA)
    assert ledger.spent("ward", DELTA) == math.inf
    with pytest.raises(BudgetError):
        reserve(ledger, "ward", 2)


def test_nonsense_is_refused(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    with pytest.raises(UsageError):
        reserve(ledger, "ward", 0)
    with pytest.raises(UsageError):
        ledger.reserve("ward", "s", 1, [], manifest=MANIFEST, ceiling=1, delta=DELTA)
    with pytest.raises(UsageError):
        ledger.reserve("ward", "s", 1, ROUND, manifest=MANIFEST, ceiling=1, delta=0)
    with pytest.raises(FormatError):
        ledger.reserve("ward", "s", 1, ROUND, manifest=Digest(b"short"), ceiling=1, delta=DELTA)
    with pytest.raises(BudgetError):
        reserve(ledger, "ward", 1, ceiling=math.nan)
    for question in (
        lambda: reserve(ledger, "nobody", 1),
        lambda: ledger.spent("nobody", DELTA),
        lambda: ledger.overlapping("nobody"),
        lambda: ledger.dataset("nobody"),
    ):
        with pytest.raises(UsageError, match="not registered"):
            question()
    for patients in ([], ["a", " "]):
        with pytest.raises(UsageError):
            ledger.register("ward", patients)
    with pytest.raises(FormatError):
        ledger.register("Ward 7", WARD)


# Whom it charges


def test_registering_is_idempotent_and_versions_are_kept(ledger: Ledger) -> None:
    assert ledger.register("ward", WARD) == DataSet("ward", 1, 100)
    head = ledger.head()
    assert ledger.register("ward", [*reversed(WARD), " p1 "]) == DataSet("ward", 1, 100)
    assert ledger.head() == head
    reserve(ledger, "ward", 1)
    assert ledger.register("ward", ["x", "y"]) == DataSet("ward", 2, 2)
    assert ledger.spent("ward", DELTA) == 0  # neither has been in any update
    assert ledger.register("ward", ["x", "y", "p1"]) == DataSet("ward", 3, 3)
    assert ledger.spent("ward", DELTA) == cost(1)  # p1 has
    assert ledger.datasets() == [DataSet("ward", 3, 3)]
    ledger.verify_chain()


def test_a_renamed_data_set_owes_the_same(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    reserve(ledger, "ward", 1)
    ledger.register("new-name", WARD)
    assert ledger.spent("new-name", DELTA) == cost(1)
    reserve(ledger, "new-name", 1)
    assert ledger.spent("ward", DELTA) == ledger.spent("new-name", DELTA) == cost(2)
    with pytest.raises(BudgetError):
        reserve(ledger, "new-name", 2, ceiling=cost(2))


def test_one_shared_patient_is_charged_by_both(ledger: Ledger) -> None:
    ledger.register("ward", ["a", "b"])
    ledger.register("clinic", ["b", "c"])
    ledger.register("apart", ["d"])
    reserve(ledger, "ward", 1)
    reserve(ledger, "clinic", 1)
    assert ledger.spent("ward", DELTA) == ledger.spent("clinic", DELTA) == cost(2)
    assert ledger.spent("apart", DELTA) == 0
    assert ledger.overlapping("ward") == {"ward", "clinic"}
    assert ledger.overlapping("apart") == {"apart"}


def test_the_loss_is_exact_for_each_group_of_patients(ledger: Ledger) -> None:
    ledger.register("ward", ["a", "b", "c"])
    ledger.register("left", ["a"])
    ledger.register("right", ["b"])
    for name in ("ward", "left", "right"):
        reserve(ledger, name, 1)
    assert ledger.spent("ward", DELTA) == cost(2)  # nobody is in all three


def test_many_groups_are_charged_as_if_one_patient_were_in_all(ledger: Ledger) -> None:
    names = [f"d{number}" for number in range(cohorts.MAX_GROUPS + 1)]
    ledger.register("ward", names)
    for name in names:
        ledger.register(name, [name])
        reserve(ledger, name, 1)
    assert ledger.spent("ward", DELTA) == cost(len(names)) > cost(1)
    assert ledger.spent("d0", DELTA) == cost(1)


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("register"), st.sampled_from("ab"), st.sets(st.sampled_from("uvwx"), min_size=1)),
        st.tuples(st.just("reserve"), st.sampled_from("ab"), st.just(set[str]())),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(steps=Steps)
def test_the_loss_is_the_worst_patients(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Against a model that simply follows every patient."""
    ledger = open_ledger(tmp_path_factory.mktemp("ledger") / "site.db")
    present: dict[str, set[str]] = {}
    charged = dict.fromkeys("uvwx", 0)
    for number, (step, name, patients) in enumerate(steps, start=1):
        if step == "register":
            ledger.register(name, sorted(patients))
            present[name] = patients
        elif name in present:
            ledger.reserve(name, "s", number, [Gaussian(10.0)], manifest=MANIFEST, ceiling=1e6, delta=DELTA)
            for patient in present[name]:
                charged[patient] += 1
    for name, patients in present.items():
        worst = max(charged[patient] for patient in patients)
        expected = epsilon([Gaussian(10.0, worst)], DELTA) if worst else 0.0
        assert ledger.spent(name, DELTA) == pytest.approx(expected, rel=1e-9)
    ledger.verify_chain()


# The patient key


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "patient.key"
    key = PatientKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PatientKey.read(path).digest("a") == key.digest("a")
    assert PatientKey.create(tmp_path / "other.key").digest("a") != key.digest("a")
    with pytest.raises(EnvironmentProblem):
        PatientKey.create(path)
    path.chmod(0o644)
    with pytest.raises(EnvironmentProblem, match="lets others read"):
        PatientKey.read(path)
    assert path.read_bytes().hex() not in repr(key) and "OMITTED" in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_spelling_of_an_id_does_not_hide_a_patient() -> None:
    key = PatientKey(KEY)
    assert key.digest("Zoe\u0308-1") == key.digest(" Zo\u00eb-1\n")
    assert key.digest("1") != key.digest("01")


def test_another_key_cannot_hide_who_was_charged(engine: Engine, ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    forgetful = Ledger(engine, PatientKey(bytes(32)), accountant=LocalAccountant(), clock=ManualClock())
    with pytest.raises(VerificationError, match="patient key"):
        forgetful.register("fresh", WARD)


def test_no_patient_id_is_stored(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "site.db")
    ledger.register("ward", ["MRN-0012345"])
    reserve(ledger, "ward", 1)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ward" in stored
    assert b"0012345" not in stored and KEY not in stored


# The chain


def test_heads_are_contained_and_others_are_not(ledger: Ledger) -> None:
    assert ledger.head() == EMPTY
    ledger.register("ward", WARD)
    heads = [ledger.head(), *(reserve(ledger, "ward", number) for number in (1, 2, 3))]
    assert [head.sequence for head in heads] == [1, 2, 3, 4]
    for head in (EMPTY, *heads):
        assert ledger.contains(head.sequence, head.digest)
        ledger.check_not_rolled_back(head.sequence, head.digest)
    for sequence, digest in ((5, heads[-1].digest), (3, heads[-1].digest), (0, heads[0].digest)):
        assert not ledger.contains(sequence, digest)
        with pytest.raises(VerificationError):
            ledger.check_not_rolled_back(sequence, digest)


def test_a_restored_backup_is_noticed_even_after_it_grew(tmp_path: Path) -> None:
    now, old = open_ledger(tmp_path / "now.db"), open_ledger(tmp_path / "old.db")
    for ledger in (now, old):
        ledger.register("ward", WARD)
        reserve(ledger, "ward", 1)
    assert now.head() == old.head()  # the same history gives the same head
    signed = reserve(now, "ward", 2)
    with pytest.raises(VerificationError, match="ends at event 2, and the site signed event 3"):
        old.check_not_rolled_back(signed.sequence, signed.digest)
    reserve(old, "ward", 2, study="another")
    with pytest.raises(VerificationError, match="event 3 is another one"):
        old.check_not_rolled_back(signed.sequence, signed.digest)


TAMPERINGS = {
    "details": ("UPDATE ledger_events SET details = replace(details, '10]', '1]') WHERE sequence = 3", 3),
    "dataset": ("UPDATE ledger_events SET dataset = 'other' WHERE sequence = 3", 3),
    "version": ("UPDATE ledger_events SET version = 2 WHERE sequence = 3", 3),
    "round": ("UPDATE ledger_events SET round = 9 WHERE sequence = 4", 4),
    "study": ("UPDATE ledger_events SET study = 't' WHERE sequence = 4", 4),
    "kind": ("UPDATE ledger_events SET kind = 'lost' WHERE sequence = 4", 4),
    "manifest": ("UPDATE ledger_events SET manifest = x'00' WHERE sequence = 4", 4),
    "time": ("UPDATE ledger_events SET recorded_at = 0 WHERE sequence = 2", 2),
    "previous": ("UPDATE ledger_events SET previous = x'00' WHERE sequence = 4", 4),
    "head": ("UPDATE ledger_events SET head = x'00' WHERE sequence = 2", 2),
    "first": ("DELETE FROM ledger_events WHERE sequence = 1", 1),
    "middle": ("DELETE FROM ledger_events WHERE sequence = 3", 3),
    "patient": ("DELETE FROM ledger_patients WHERE digest IN (SELECT min(digest) FROM ledger_patients)", 1),
    "membership": ("UPDATE ledger_patients SET until = 1", 1),
}


@pytest.mark.parametrize("name", sorted(TAMPERINGS))
def test_fsck_names_the_first_event_that_was_changed(engine: Engine, ledger: Ledger, name: str) -> None:
    ledger.register("ward", WARD)
    for number in (1, 2, 3):
        reserve(ledger, "ward", number)
    assert ledger.verify_chain() == ledger.head()
    statement, bad = TAMPERINGS[name]
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount
    with pytest.raises(VerificationError, match=rf"ledger event {bad}\b"):
        ledger.verify_chain()


def test_events_have_one_spelling() -> None:
    events = (SampledGaussian(1.1, 1 / 3, 7), Gaussian(0.0), Gaussian(30.0, 2))
    assert events_from_json(events_to_json(events)) == events
    for bad in (
        [["gaussian"]],
        [["laplace", "0x1p0", 1]],
        [["gaussian", "-0x1p0", 1]],
        [["gaussian", 1, 1]],
        7,
    ):
        with pytest.raises(FormatError):
            events_from_json(bad)


# Several processes


def _race(path: Path, study: str, rounds: int, ceiling: float) -> int:
    ledger, done = open_ledger(path), 0
    epsilon(ROUND, DELTA)  # the accountant loads now, not between the other's reservations
    path.with_suffix(f".{study}").touch()
    while len(list(path.parent.glob("*.one"))) + len(list(path.parent.glob("*.two"))) < 2:
        time.sleep(0.001)
    for number in range(1, rounds + 1):
        try:
            ledger.reserve(
                "ward", study, number, [Gaussian(10.0)], manifest=MANIFEST, ceiling=ceiling, delta=DELTA
            )
            done += 1
        except BudgetError:
            break
    return done


def test_two_processes_cannot_overspend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.db"
    ledger = open_ledger(path)
    ledger.register("ward", WARD)
    ceiling = epsilon([Gaussian(10.0, 12)], DELTA)
    # The other processes import this module by its name, however pytest was started.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    with get_context("spawn").Pool(2) as pool:
        done = pool.starmap(_race, [(path, "one", 20, ceiling), (path, "two", 20, ceiling)])
    assert sum(done) == 12
    assert ledger.spent("ward", DELTA) <= ceiling
    assert ledger.verify_chain().sequence == 13
