"""kill -9 of the coordinator and of a site at every transition of a study, between real processes with mutual TLS.
The study finishes, all sites have the same bits, and every model is the one that the journalled updates give."""

import typing

import grpc
import pytest
from fault_checker import check_study

from cipherward.coordinator.api.dispatch import SERVICE
from cipherward.coordinator.api.policy import POLICIES
from cipherward.coordinator.rounds import effects
from cipherward.coordinator.rounds.state import Life, Phase
from cipherward.ids import Role
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.state.tables import rounds as journal

NAMES = ("alpha", "beta", "delta", "gamma")
QUORUM, SHARED = "quorum", "shared-key"
ONLY = {
    SHARED: {"keys"},
    QUORUM: {
        "acknowledge",
        "unseal",
        "shares",
        "answers",
        "PostAcknowledgement",
        "PostAnswer",
        "PostSumCheck",
    },
}


def of_suite(suite, names):
    others = {each for other, only in ONLY.items() if other != suite for each in only}
    return [name for name in names if name not in others]


def coordinator_points(suite):
    """Every transition of the coordinator's that the suite has, from the code's own lists."""
    places = [*of_suite(suite, [phase.value for phase in Phase]), Life.FINISHED.value]
    signed = [each.__name__ for each in typing.get_args(effects.Effect) if each.__name__.startswith("Sign")]
    kinds = ["weights", "update", "sum", "relay", "shares", "answers"]
    writing = [
        method.name
        for method in SERVICE.methods
        if Role.SITE in POLICIES[method.name].roles and not method.name.startswith(("Get", "Watch", "Hello"))
    ]
    return [
        *(f"move:{place}:{when}" for place in places for when in ("before", "after")),
        *(f"sign:{name.removeprefix('Sign').upper()}_RECORD" for name in signed if name != "SignAbort"),
        *(f"segment:{kind}:{when}" for kind in of_suite(suite, kinds) for when in ("before", "after")),
        *(f"reply:{name}" for name in [*of_suite(suite, writing), "StartStudy"]),
    ]


COLUMNS = {
    # The column that stands for the transaction, and what else is written in it.
    "round_record": {"study", "round"},
    "started": {},
    "update_digest": {},
    "ciphertext_root": {"chunk_count", "share_root"},
    "commit_record": {},
    "acknowledgement": {},
    "answered_close": {},
    "closing_record": {"transcript", "aborted", "contributors"},
    "model_digest": {"loss", "accuracy", "patients"},
}
CALLS = {
    "put_join": {"join_record", "former_joins"},
    "accept_plan": {"plan_record"},
    "next_attempt": {"attempt"},
}
FILES = ("put_update", "put_chunks", "put_shares", "put_sum")


def site_steps(suite):
    """Every step of a site's that the suite has: before and after each transaction of its journal, after each file,
    after each call by which it gives something away."""
    quorum_only = {"acknowledgement", "answered_close", "put_shares"}
    quorum_only |= {"post_acknowledgement", "post_answer", "post_sum_check"}
    given = [
        name for name in vars(CoordinatorClient) if name.startswith(("post_", "put_", "upload", "request_"))
    ]
    given = [name for name in given if name not in ("upload_state", "put_relay")]
    columns = [name for name in COLUMNS if suite == QUORUM or name not in quorum_only]
    others = [("calls", name) for name in CALLS] + [("outbox", name) for name in FILES]
    others += [("client", name) for name in given]
    return [
        *(f"{when}:{name}" for name in columns for when in ("journal-before", "journal")),
        *(f"{owner}:{name}" for owner, name in others if suite == QUORUM or name not in quorum_only),
    ]


def test_every_column_of_the_journal_has_its_point():
    covered = set(COLUMNS).union(*COLUMNS.values(), *CALLS.values())
    assert covered | {"skipped"} == {column.name for column in journal.columns}


def start_study(world, signed):
    """As an operator does: once more if there is no reply."""
    while True:
        try:
            return world.start_study(signed)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error


def died_at(world, name):
    return (world.folder / name / "crashes.txt").read_text().split()


def run_study(world, suite, rounds, *, hub=(), beta=(), **manifest):
    world.start_coordinator(CRASH_AT=",".join(hub))
    signed = world.manifest(
        "heart-1", suite=suite, rounds=rounds, minimum=3, join_window=300, upload=300, **manifest
    )
    start_study(world, signed)
    for name in NAMES:
        world.start_site(name, CRASH_AT=",".join(beta) if name == "beta" else "")
    world.wait(*NAMES, seconds=200)


@pytest.mark.slow
def test_a_coordinator_killed_in_every_phase(make_consortium):
    world = make_consortium(*NAMES)
    points = [
        name for name in coordinator_points(QUORUM) if name.startswith("move:") and name.endswith("after")
    ]
    run_study(world, QUORUM, 1, hub=points)
    assert sorted(died_at(world, "hub")) == sorted(points)
    check_study(world, "heart-1")


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "rounds"), [(QUORUM, 13), (SHARED, 3)])
def test_both_killed_at_every_transition(make_consortium, suite, rounds):
    world = make_consortium(*NAMES)
    points, steps = coordinator_points(suite), site_steps(suite)
    run_study(world, suite, rounds, hub=points, beta=steps)
    assert sorted(died_at(world, "hub")) == sorted(points)
    assert sorted(died_at(world, "beta")) == sorted(steps)
    check_study(world, "heart-1", min_opened=rounds - 2)
