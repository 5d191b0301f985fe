"""The ledger as an admin reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cipherward.clock import ManualClock
from cipherward.database import make_engine
from cipherward.ids import Digest
from cipherward.site_agent.ledger import report
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import Gaussian, SampledGaussian, epsilon
from cipherward.site_agent.ledger.chain import Head
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.state.metadata import metadata

KEY = bytes(range(32))
MANIFEST = Digest(b"m" * 32)
ROUND = (SampledGaussian(2.0, 0.1, 10), Gaussian(20.0))
DELTA = 1e-5
WARD = [f"p{number}" for number in range(100)]


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


def test_the_report_shows_each_event_and_what_is_left(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    ledger.register("clinic", WARD[:1])
    reserve(ledger, "ward", 1, ceiling=2.0)
    reserve(ledger, "clinic", 1)
    reserve(ledger, "ward", 2, ceiling=2.0)
    ledger.mark_lost("ward", "s", 2)
    rows = report.spending(ledger, "ward")
    assert [row.kind.value for row in rows] == [
        "register",
        "register",
        "reserve",
        "reserve",
        "reserve",
        "lost",
    ]
    assert [row.epsilon for row in rows] == [None, None, cost(1), None, cost(3), None]
    assert rows[4].left == pytest.approx(2.0 - cost(3))
    assert rows[2].cost == "10 steps, noise 2, rate 0.1 + 1 release, noise 20"
    assert all(later.sequence > earlier.sequence for earlier, later in itertools.pairwise(rows))
    ledger.register("apart", ["z"])
    assert report.shares(ledger, "apart", DELTA) == []


def test_the_report_shows_what_each_study_took(ledger: Ledger) -> None:
    ledger.register("ward", WARD)
    ledger.register("clinic", WARD[:1])
    reserve(ledger, "ward", 1, study="one")
    reserve(ledger, "ward", 2, study="one")
    reserve(ledger, "clinic", 1, study="two")
    ledger.mark_lost("ward", "one", 2)
    expected = [report.StudyShare("one", 2, 1, cost(2)), report.StudyShare("two", 1, 0, cost(1))]
    assert report.shares(ledger, "ward", DELTA) == expected
    assert ledger.spent("ward", DELTA) == cost(3) < cost(2) + cost(1)
    assert ledger.spent("ward", DELTA, "three") == 0


def test_a_search_for_good_settings_is_paid_for_like_any_study(ledger: Ledger) -> None:
    """Each setting that was tried on the data is a study: the one that is kept starts where they ended."""
    ledger.register("ward", WARD)
    tried = [(SampledGaussian(sigma, 0.1, 10), Gaussian(20.0)) for sigma in (1.5, 2.0, 3.0)]
    for number, setting in enumerate(tried):
        ledger.reserve("ward", f"try-{number}", 1, setting, manifest=MANIFEST, ceiling=100.0, delta=DELTA)
    search = epsilon([event for setting in tried for event in setting], DELTA)
    assert ledger.spent("ward", DELTA) == search
    left = ledger.remaining_rounds("ward", ROUND, 5.0, DELTA)
    ledger.register("untouched", ["z"])
    assert left < ledger.remaining_rounds("untouched", ROUND, 5.0, DELTA)
    final = epsilon([*(event for setting in tried for event in setting), *ROUND], DELTA)
    reserve(ledger, "ward", 1, study="final")
    assert ledger.spent("ward", DELTA) == final > max(search, cost(1))
