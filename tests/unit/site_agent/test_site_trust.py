"""Whom a site believes. Each rule: the honest case passes, one change is refused, and nothing was sent
under it."""

import numpy as np
import pytest

from cipherward.crypto.labels import Label
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_next
from cipherward.errors import (
    BudgetError,
    ConflictError,
    IdentityError,
    LimitError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.status import study_status

STUDY = "heart-1"


def incidents(world):
    return [incident.message for incident in world.site.studies.incidents()]


# A whole honest round


def test_an_honest_round_gives_the_mean_of_the_updates(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    agent.release.report(1)
    row = agent.study.row()
    expected = (world.trainer.update + np.float32(0.25) + np.float32(-0.5)) / 3
    after = world.site.models.get(row.model_digest)
    assert np.abs(after - expected).max() < 1e-4
    assert (row.model_round, row.transcript_round) == (1, 1)
    [report] = world.coordinator.sent_reports
    assert rp.ModelReport.FromString(report.payload).model_digest == row.model_digest
    entry = agent.study.journal.entry(1)
    assert entry.cohort == ("alpha", "beta", "gamma")
    assert entry.patients == pytest.approx(600, rel=1e-3)
    assert entry.loss == pytest.approx(4 * 1.5 / 3, rel=1e-3)
    assert not list((world.site.folder.root / "outbox").rglob("*.f32"))


# Admission


def test_a_manifest_of_another_root_or_with_other_keys_is_refused(world):
    signed = world.coordinator.manifests[0]
    world.coordinator.manifests = [world.sign("hub", Label.MANIFEST, world.manifest())]
    with pytest.raises(VerificationError):
        world.admit()
    changed = world.manifest()
    changed.roster[0].sealing_key = world.members["beta"].credential.sealing_key[::-1]
    world.publish(changed)
    with pytest.raises(VerificationError):
        world.admit()
    other = world.manifest()
    other.roster[0].signing_key = bytes(range(32))
    world.publish(other)
    with pytest.raises(IdentityError, match="keys"):
        world.admit()
    assert world.site.studies.versions(STUDY) is None
    world.coordinator.manifests = [signed]


def test_another_release_of_the_library_is_named(world):
    manifest = world.manifest()
    manifest.suite.library = "tenseal 0.3.15"
    world.publish(manifest)
    with pytest.raises(VerificationError, match=r"needs tenseal 0\.3\.15.*installed here is"):
        world.admit()


def test_other_task_code_and_other_initial_weights_are_refused(world):
    manifest = world.manifest()
    manifest.task.code_digest = bytes(32)
    world.publish(manifest)
    with pytest.raises(PolicyError, match="installed here is"):
        world.admit()
    world.publish(world.manifest())
    world.coordinator.weights = np.ones(23, "<f4").tobytes()
    with pytest.raises(VerificationError, match="initial weights"):
        world.admit()


def test_policy_refuses_with_every_reason(make_world):
    world = make_world(policy_cohort=3)
    with pytest.raises(PolicyError, match="the hospital wants at least 3"):
        world.admit()
    assert [code for code, _ in world.site.studies.findings(STUDY)] == ["cohort-too-small"]


def test_an_accepted_manifest_never_changes(world):
    world.admit()
    world.publish(world.manifest(rounds=6))
    with pytest.raises(ConflictError, match="has changed"):
        world.admit()
    assert world.attach().study.trust(1).manifest.rounds == 5


# Opening


def test_a_round_from_another_model_or_history_is_not_joined(world):
    agent = world.admit()
    world.open_round(agent, 1, model_digest=b"m" * 32)
    with pytest.raises(VerificationError, match="another model"):
        agent.participation.train_and_join(1)
    world.open_round(agent, 2, previous_transcript=b"t" * 32)
    with pytest.raises(VerificationError, match="does not continue"):
        agent.participation.train_and_join(2)
    assert not world.coordinator.joins and not world.trainer.trained


def test_a_second_opening_of_a_round_is_refused_and_kept(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    second = world.open_round(agent, 1, opened_at=2)
    with pytest.raises(VerificationError, match="twice"):
        agent.study.check_round_record(1, record_digest(Label.ROUND_RECORD, second))
    assert incidents(world) == ["the coordinator opened this round twice"]


def test_the_budget_is_reserved_before_training_and_once(world):
    agent = world.admit()
    world.open_round(agent, 1)
    world.trainer.train = lambda *_, **__: (_ for _ in ()).throw(UnavailableError("the trainer died"))
    with pytest.raises(UnavailableError):
        agent.participation.train_and_join(1)
    spent = world.site.ledger.head()
    assert spent.sequence == 2  # registered, reserved
    del world.trainer.train
    world.attach().participation.train_and_join(1)
    assert world.site.ledger.head() == spent and world.trainer.trained == 1


def test_no_budget_no_training(world):
    agent = world.admit()
    spent = world.site.policy.datasets["heart"].model_copy(update={"epsilon_ceiling": 0.001})
    object.__setattr__(
        world.site, "policy", world.site.policy.model_copy(update={"datasets": {"heart": spent}})
    )
    agent = world.attach()
    world.open_round(agent, 1)
    with pytest.raises(BudgetError):
        agent.participation.train_and_join(1)
    assert not world.trainer.trained and agent.study.journal.entry(1).skipped
    agent.participation.train_and_join(1)  # sits it out
    assert not world.coordinator.joins


@pytest.mark.parametrize(
    "change", [lambda ids: (*ids, "new"), lambda ids: ids[1:], lambda ids: ("x", *ids[1:])]
)
def test_a_source_that_changes_under_the_training_joins_nothing_and_stays_paid_for(world, change):
    agent = world.admit()
    world.open_round(agent, 1)
    world.trainer.trained_on = change(world.trainer.patients)
    with pytest.raises(PolicyError, match="other patients than it was charged for"):
        agent.participation.train_and_join(1)
    entry = agent.study.journal.entry(1)
    assert world.trainer.trained == 1 and entry.skipped and entry.update_digest is None
    assert world.site.ledger.head().sequence == 2  # registered, reserved
    agent.participation.train_and_join(1)  # sits it out
    assert world.trainer.trained == 1 and not world.coordinator.joins


def test_nan_is_not_joined_and_stays_paid_for(world):
    agent = world.admit()
    world.trainer.update = np.full(23, np.nan, np.float32)
    world.open_round(agent, 1)
    with pytest.raises(LimitError, match="not finite"):
        agent.participation.train_and_join(1)
    agent.participation.train_and_join(1)
    assert not world.coordinator.joins and world.trainer.trained == 1
    assert world.site.ledger.head().sequence == 2  # registered, reserved


def test_a_restart_posts_the_same_join(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    world.attach().participation.train_and_join(1)
    first, second = world.coordinator.joins
    assert first == second and world.trainer.trained == 1


# The plan


def test_one_plan_ever(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, first = world.plan(agent, 1)
    agent.study.plan(1, first)
    _, second = world.plan(agent, 1, names=("alpha", "beta"))
    for current in (agent, world.attach()):
        with pytest.raises(VerificationError, match="second plan record"):
            current.upload.upload_and_commit(1, second)
    assert not world.coordinator.uploads and not world.coordinator.commits
    assert incidents(world) == ["the coordinator signed a second plan record for this round"]
    # The one that was accepted still counts.
    agent.upload.upload_and_commit(1, first)
    assert len(world.coordinator.commits) == 1


def test_a_plan_smaller_than_the_hospital_wants_is_not_uploaded_to(make_world):
    world = make_world()
    world.publish(world.manifest(minimum_cohort=2))
    agent = world.admit()
    object.__setattr__(world.site, "policy", world.site.policy.model_copy(update={"minimum_cohort": 3}))
    agent = world.attach()
    agent.study.journal.write(1, update_digest=agent.study.outbox(1).put_update(np.ones(27, np.float32)))
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1, names=("alpha", "beta"))
    with pytest.raises(PolicyError, match="at least 3"):
        agent.upload.upload_and_commit(1, digest)
    assert not world.coordinator.uploads


def test_a_plan_without_this_site_gets_nothing(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1, names=("beta", "gamma"))
    agent.upload.upload_and_commit(1, digest)
    assert not world.coordinator.uploads and not world.coordinator.commits


def test_a_resumed_upload_sends_the_same_bytes_and_a_commit_is_repeated(world):
    agent = world.admit()
    chunks, commit = world.to_commit(agent, 1)
    world.coordinator.uploads = {1: chunks[:0]}
    world.attach().upload.upload_and_commit(1, b"")
    assert world.coordinator.commits == [commit, commit]
    assert world.coordinator.uploads == {1: []}, "nothing is uploaded after the commit"
    with pytest.raises(ConflictError, match="spent"):
        agent.study.journal.next_attempt(1)


def test_an_upload_broken_off_goes_on_in_the_same_attempt(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1)
    taken = []

    def broken(messages):
        for message in messages:
            taken.append(message)
        raise UnavailableError("the line went dead")

    world.coordinator.upload = broken
    with pytest.raises(UnavailableError):
        agent.upload.upload_and_commit(1, digest)
    del world.coordinator.upload
    world.attach().upload.upload_and_commit(1, digest)
    assert list(world.coordinator.uploads) == [1]
    assert [message.data for message in taken[1:]] == world.coordinator.uploads[1]


def test_a_damaged_outbox_means_a_new_attempt(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1)
    world.coordinator.upload = lambda messages: (_ for _ in ()).throw(UnavailableError("down"))
    with pytest.raises(UnavailableError):
        agent.upload.upload_and_commit(1, digest)
    del world.coordinator.upload
    path = world.site.folder.outbox(STUDY, 1) / "attempt-1.chunks"
    *content, last = path.read_bytes()
    path.write_bytes(bytes([*content, last ^ 1]))
    world.attach().upload.upload_and_commit(1, digest)
    assert list(world.coordinator.uploads) == [2]


# The close


def refused_sum(world, agent, words):
    before = agent.study.row()
    agent.release.catch_up(1, 1)
    row = agent.study.row()
    assert row.model_digest == before.model_digest and row.model_round == 0
    assert row.transcript_round == 1 and row.transcript != before.transcript
    assert any(words in message for message in incidents(world)), incidents(world)


def test_a_sum_that_is_not_the_closed_one_is_refused(world):
    agent = world.admit()
    world.to_close(agent, 1)
    first = world.coordinator.sum[0]
    world.coordinator.sum[0] = first[:-1] + bytes([first[-1] ^ 1])
    refused_sum(world, agent, "not the one that the close record names")


def test_a_peers_upload_passed_off_as_the_sum_is_refused(world):
    agent = world.admit()
    updates = world.to_close(agent, 1)
    with_one = world.add([updates["beta"][0]])
    world.close(agent, 1, updates, summed=with_one)
    refused_sum(world, agent, "check constant")


def test_a_sum_of_fewer_sites_than_the_hospital_wants_is_not_opened(world):
    agent = world.admit()
    updates = world.to_close(agent, 1)
    del updates["gamma"]
    world.close(agent, 1, updates)
    object.__setattr__(world.site, "policy", world.site.policy.model_copy(update={"minimum_cohort": 3}))
    refused_sum(world, world.attach(), "at least 3")
    assert world.coordinator.asked_for_sum == 0


def test_a_close_of_another_history_or_plan_is_not_chained(world):
    agent = world.admit()
    world.to_close(agent, 1)
    signed = world.coordinator.records[1, cp.RECORD_KIND_CLOSE]
    record = rp.CloseRecord.FromString(signed.payload)
    record.previous_transcript = b"t" * 32
    world.put(1, cp.RECORD_KIND_CLOSE, world.sign("hub", Label.CLOSE_RECORD, record))
    with pytest.raises(VerificationError, match="transcript"):
        agent.release.catch_up(1, 1)
    world.put(1, cp.RECORD_KIND_CLOSE, world.sign("beta", Label.CLOSE_RECORD, record))
    with pytest.raises(VerificationError):
        agent.release.catch_up(1, 1)
    assert agent.study.row().transcript_round == 0


def test_left_out_of_the_sum_is_reported_and_the_model_is_taken(world):
    agent = world.admit()
    updates = world.to_close(agent, 1)
    del updates["alpha"]
    world.close(agent, 1, updates)
    agent.release.catch_up(1, 1)
    assert agent.study.row().model_round == 1
    (incident,) = incidents(world)
    assert incident.endswith(": the coordinator does not have the commit, it came too late")
    assert world.site.ledger.head().sequence == 3  # registered, reserved, lost


def test_a_coordinator_that_has_the_commit_and_leaves_it_out_is_named(world):
    agent = world.admit()
    updates = world.to_close(agent, 1)
    del updates["alpha"]
    world.put(0, cp.RECORD_KIND_COMMIT, world.coordinator.commits[-1])
    world.close(agent, 1, updates)
    agent.release.catch_up(1, 1)
    (incident,) = incidents(world)
    assert "this site committed and was left out of the sum" in incident
    assert "no rule of the suite lets it leave one out" in incident
    entry = study_status(world.site.engine, world.site.clock, agent.study.name)["rounds"][0]
    assert "alpha" not in entry["contributors"] and entry["ciphertext_root"] and entry["transcript"]


def test_a_close_record_with_another_root_than_the_journals_is_refused(world):
    """Whoever has the site's signing key, or an older copy of its state, could commit something else in its name."""
    agent = world.admit()
    world.to_close(agent, 1)
    signed = world.coordinator.records[1, cp.RECORD_KIND_CLOSE]
    close = rp.CloseRecord.FromString(signed.payload)
    (ours,) = [item for item in close.contributions if item.site == "alpha"]
    commit = rp.Commit.FromString(ours.commit.payload)
    commit.ciphertext_root = ours.ciphertext_root = b"r" * 32
    ours.commit.CopyFrom(world.sign("alpha", Label.COMMIT, commit))
    world.put(1, cp.RECORD_KIND_CLOSE, world.sign("hub", Label.CLOSE_RECORD, close))
    with pytest.raises(
        VerificationError, match="counts a commit of this site that its journal does not have"
    ):
        agent.release.catch_up(1, 1)
    assert agent.study.row().transcript_round == 0


def test_a_counted_commit_that_the_journal_does_not_know_stops_the_site(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.keys.get(world.trust)
    world.plan(agent, 1)
    updates = {name: world.peer_update(agent, 1, name, 0.1) for name in ("alpha", "beta")}
    world.close(agent, 1, updates)
    with pytest.raises(VerificationError, match="older copy"):
        agent.release.catch_up(1, 1)


def test_an_abort_is_chained_and_the_reservation_lost(world):
    agent = world.admit()
    world.to_commit(agent, 1)
    before = agent.study.row().transcript
    signed = world.abort(agent, 1)
    agent.release.catch_up(1, 2)
    row = agent.study.row()
    assert row.transcript == transcript_next(before, record_digest(Label.ABORT_RECORD, signed))
    assert row.model_round == 0 and agent.study.journal.entry(1).aborted
    assert world.site.ledger.entries()[-1][1].kind == "lost"


def test_old_sums_are_not_replayed(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 2)
    assert world.coordinator.asked_for_sum == 0
    assert agent.study.row().transcript_round == 1 and agent.study.row().model_round == 0
