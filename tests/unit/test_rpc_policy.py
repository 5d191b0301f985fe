"""Every RPC has a row, and none is served without."""

from __future__ import annotations

from typing import Any

import pytest

from cipherward.clock import ManualClock
from cipherward.coordinator.api import dispatch
from cipherward.coordinator.api.dispatch import RPCS, SERVICE, Dispatcher
from cipherward.coordinator.api.errors import InternalError, status_of
from cipherward.coordinator.api.health import Health
from cipherward.coordinator.api.limits import Limits
from cipherward.coordinator.api.policy import MAX_MESSAGE, POLICIES, Policy
from cipherward.coordinator.api.quorum_downloads import _check_amount
from cipherward.coordinator.api.service import implementation
from cipherward.crypto.suites.registry import PACKAGES, suite
from cipherward.errors import CipherwardError, LimitError, UsageError
from cipherward.ids import Role
from cipherward.site_agent.daemon.quorum.checking import BATCH, MOST_IN_A_CALL

NOTHING: Any = None


def test_the_table_is_the_service() -> None:
    assert POLICIES.keys() == RPCS.keys() >= {method.name for method in SERVICE.methods}
    for policy in POLICIES.values():
        assert policy.roles and policy.roles <= {Role.SITE, Role.OPERATOR}
        assert 0 < policy.max_message <= MAX_MESSAGE <= 16 * 2**20
    assert all(POLICIES[name].roles == {Role.OPERATOR} for name in ("StartStudy", "AbortStudy"))


def test_an_rpc_without_row_or_handler_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    handlers = {**implementation(NOTHING), **Health(NOTHING, NOTHING).handlers()}
    assert dispatcher.handlers(handlers)
    monkeypatch.setattr(dispatch, "POLICIES", {k: v for k, v in POLICIES.items() if k != "GetSum"})
    with pytest.raises(UsageError, match="GetSum"):
        dispatcher.handlers(handlers)
    monkeypatch.undo()
    del handlers["PostJoin"]
    with pytest.raises(UsageError, match="PostJoin"):
        dispatcher.handlers(handlers)


def test_a_chunk_of_every_suite_fits_a_message() -> None:
    for name in PACKAGES:
        for params in suite(name).parameter_sets.values():
            size = params.upload_chunk_bytes(0, params.values_per_chunk)
            assert size + 1024 < POLICIES["Upload"].max_message, params.name


def test_rates_and_open_calls() -> None:
    clock = ManualClock()
    limits, policy = Limits(clock), Policy(frozenset(), 1, per_second=2, burst=3, open_calls=2)

    def once(caller: str = "a") -> None:
        with limits.admit(caller, "R", policy):
            pass

    for _ in range(3):
        once()
    with pytest.raises(LimitError, match="per_second of R is 2"):
        once()
    once("b")
    clock.advance(0.5)
    once()
    with pytest.raises(LimitError):
        once()
    clock.advance(3600)
    with (
        limits.admit("a", "R", policy),
        limits.admit("a", "R", policy),
        pytest.raises(LimitError, match="open"),
    ):
        once()
    once("c")


def test_every_error_has_a_status_of_its_own_kind() -> None:
    def tree(kind: type[CipherwardError]) -> list[type[CipherwardError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]

    codes = [kind.code for kind in tree(CipherwardError)]
    assert len(set(codes)) == len(codes), "two errors share a code"
    internal = {kind for kind in tree(CipherwardError) if status_of(kind("x")).name == "INTERNAL"}
    assert internal <= {CipherwardError, InternalError}


def test_sites_ask_for_no_more_chunks_at_a_time_than_they_may() -> None:
    for contributors in (1, 2, 15, 16, 17, 255, 256, 257, 1000, 5000):
        asked = max(1, min(BATCH, MOST_IN_A_CALL // contributors))  # as Checking does
        _check_amount("GetUpdateChunks", asked, contributors)
    with pytest.raises(LimitError, match="max_chunks of GetUpdateChunks"):
        _check_amount("GetUpdateChunks", 2, 1000)
