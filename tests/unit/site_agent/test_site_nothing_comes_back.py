"""Whatever is done to a site's folder, machine or clock between two rounds, no spent budget comes back: either it is
still there, or the site refuses to go on."""

import shutil
from dataclasses import replace

import pytest

from cipherward.clock import ManualClock
from cipherward.errors import RollbackError, VerificationError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.site_agent.daemon.constants import round_cost
from cipherward.site_agent.daemon.hospital import reserve_round
from cipherward.site_agent.daemon.rollback import check_own_commit
from cipherward.site_agent.ledger.accountant import LocalAccountant
from cipherward.site_agent.ledger.accounting import epsilon
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key

DELTA = 1e-5
DAY = 86_400.0


@pytest.fixture
def paid(world):
    """alpha committed in round 1, and the coordinator can show it. A copy of its folder is from before."""
    agent = world.admit()
    world.site.engine.dispose()
    shutil.copytree(world.folder / "alpha", world.folder / "backup")
    _, commit = world.to_commit(agent, 1)
    world.put(0, cp.RECORD_KIND_COMMIT, commit)
    world.site.engine.dispose()
    world.spent = epsilon(round_cost(world.trust.manifest), DELTA)
    return world


def test_a_restart_gives_nothing_back(paid):
    paid.site = paid.open_site()
    assert paid.site.ledger.spent("heart", DELTA) == paid.spent > 0
    check_own_commit(paid.attach().study, 1)
    reserve_round(paid.site, paid.trust, "heart", 1)  # paid for already: free, and no second time
    assert paid.site.ledger.spent("heart", DELTA) == paid.spent


@pytest.mark.parametrize("now", [0.0, 1_700_000_000.0 + 4000 * DAY])
def test_no_clock_gives_anything_back(paid, now):
    paid.site = paid.open_site()
    clock, cost = ManualClock(now), round_cost(paid.trust.manifest)
    key = patient_key(paid.site.folder)
    ledger = Ledger(paid.site.engine, key, accountant=LocalAccountant(), clock=clock)
    paid.site = replace(paid.site, ledger=ledger, clock=clock)
    assert ledger.spent("heart", DELTA) == paid.spent
    reserve_round(paid.site, paid.trust, "heart", 2)
    assert ledger.spent("heart", DELTA) == epsilon(cost * 2, DELTA)
    assert ledger.verify_chain() == ledger.head()


def test_a_restored_folder_refuses_to_go_on(paid):
    shutil.rmtree(paid.folder / "alpha")
    shutil.copytree(paid.folder / "backup", paid.folder / "alpha")
    paid.site = paid.open_site()
    assert paid.site.ledger.spent("heart", DELTA) == 0, "the copy has forgotten"
    with pytest.raises(RollbackError, match="not the one that the site signed for"):
        check_own_commit(paid.attach().study, 1)
    reserve_round(paid.site, paid.trust, "heart", 1)  # and growing as long as before does not hide it
    with pytest.raises(RollbackError):
        check_own_commit(paid.attach().study, 1)


def test_a_removed_database_refuses_to_go_on(paid):
    for path in (paid.folder / "alpha").glob("state.db*"):
        path.unlink()
    paid.site = paid.open_site()
    with pytest.raises(RollbackError, match="it ends at event"):
        check_own_commit(paid.admit().study, 1)


def test_a_new_patient_key_cannot_make_patients_look_new(paid):
    (paid.folder / "alpha" / "patient.key").unlink()
    paid.site = paid.open_site()
    with pytest.raises(VerificationError, match="patient key"):
        reserve_round(paid.site, paid.trust, "heart", 2)
    assert paid.site.ledger.spent("heart", DELTA) == paid.spent
