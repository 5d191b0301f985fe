"""Whom a site believes. Each rule: the honest case passes, one change is refused, and nothing was sent
under it."""

import numpy as np
import pytest

from cipherward.crypto.labels import Label
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import model_digest, transcript_next
from cipherward.errors import (
    BudgetError,
    ConflictError,
    IdentityError,
    LimitError,
    PolicyError,
    RollbackError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.agent import Agent
from cipherward.site_agent.daemon.relay import seal_item
from cipherward.site_agent.daemon.rollback import check_own_commit
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


# Restored backups


def test_a_restored_backup_is_noticed(world):
    agent = world.admit()
    _, commit = world.to_commit(agent, 1)
    world.put(0, cp.RECORD_KIND_COMMIT, commit)
    check_own_commit(agent.study, 1)
    head = world.site.ledger.head()
    other = world.commit_of(1, "alpha", [b""], ledger_sequence=head.sequence, ledger_head=head.digest)
    world.put(0, cp.RECORD_KIND_COMMIT, other)
    with pytest.raises(RollbackError, match="journal does not know"):
        check_own_commit(agent.study, 1)
    ahead = world.commit_of(1, "alpha", [b""], ledger_sequence=9, ledger_head=b"h" * 32)
    world.put(0, cp.RECORD_KIND_COMMIT, ahead)
    with pytest.raises(RollbackError, match="it ends at event 2"):
        check_own_commit(agent.study, 1)
    unknown = world.commit_of(
        1, "alpha", [b""], round=3, ledger_sequence=head.sequence, ledger_head=head.digest
    )
    world.put(0, cp.RECORD_KIND_COMMIT, unknown)
    with pytest.raises(RollbackError, match="journal does not know"):
        check_own_commit(agent.study, 1)


def commit_in(world, study, commit):
    """The coordinator shows this as alpha's last commit in that study, and none in others."""
    before = world.coordinator.record

    def record(name, number, kind):
        if kind != cp.RECORD_KIND_COMMIT:
            return before(name, number, kind)
        return commit if name == study else None

    world.coordinator.record = record


FINISHED_STUDY = cp.StudySnapshot(
    study="before", state=cp.STUDY_STATE_FINISHED, manifest_digest=bytes(32), manifest_version=1, round=5
)


def running_study(world):
    return cp.StudySnapshot(
        study=STUDY,
        state=cp.STUDY_STATE_RUNNING,
        manifest_digest=world.trust.digest,
        manifest_version=1,
        round=1,
        phase=cp.PHASE_KEYS,
    )


@pytest.mark.parametrize("over", [cp.STUDY_STATE_FINISHED, cp.STUDY_STATE_ABORTED])
def test_a_backup_from_before_a_whole_study_is_noticed_before_any_study_goes_on(world, over):
    commit = rp.Commit(
        manifest_digest=b"m" * 32, site="alpha", round=5, ledger_sequence=9, ledger_head=b"h" * 32
    )
    commit_in(world, "before", world.sign("alpha", Label.COMMIT, commit))
    agent = Agent(world.site, world.coordinator, once_finished=False)
    before = cp.StudySnapshot()
    before.CopyFrom(FINISHED_STUDY)
    before.state = over
    with pytest.raises(RollbackError, match="it ends at event 0, and the site signed event 9"):
        agent._hello(cp.HelloReply(studies=[running_study(world), before]))
    assert world.site.studies.versions(STUDY) is None, "no study went on"
    with pytest.raises(RollbackError):  # the same, where it comes by the stream
        agent._snapshot(before)


def test_a_study_that_is_over_is_nothing_to_a_site_that_never_committed_in_it(world):
    agent = Agent(world.site, world.coordinator, once_finished=False)
    agent._hello(cp.HelloReply(studies=[FINISHED_STUDY]))
    assert world.site.studies.row("before") is None


def test_a_last_commit_that_is_not_this_sites_refuses_its_study_only(world):
    commit = rp.Commit(manifest_digest=b"m" * 32, site="alpha", round=5)
    commit_in(world, "before", world.sign("beta", Label.COMMIT, commit))
    agent = Agent(world.site, world.coordinator, once_finished=False)
    agent._hello(cp.HelloReply(studies=[FINISHED_STUDY]))
    assert world.site.studies.row("before").state == "refused"


# Models from peers


def behind(world):
    """alpha missed the release of round 1; gives the model that the others have."""
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 2)
    weights = np.linspace(0, 1, 23, dtype=np.float32)
    return agent, weights


def model_item(world, agent, sender, weights, **changes):
    values = {
        "kind": rp.RelayItem.KIND_MODEL,
        "sender": sender,
        "receiver": "alpha",
        "round_number": 1,
        "content": weights.astype("<f4").tobytes(),
        "content_digest": model_digest(weights),
        "transcript": agent.study.row().transcript,
    } | changes
    member = world.members[sender]
    return list(seal_item(world.trust, member.signing_key, str(member.identity), **values))


def test_a_model_is_believed_if_enough_of_the_others_signed_for_it(world):
    agent, weights = behind(world)
    digest = model_digest(weights)
    world.coordinator.relay = model_item(world, agent, "beta", weights)
    world.coordinator.reports = [world.report_of(1, "beta", digest)]
    with pytest.raises(UnavailableError, match="not yet agreed"):
        agent.resync.ensure_model(2)
    # One site's report twice, or in another's name, is still one.
    forged = world.report_of(1, "beta", digest)
    forged.signer = forged.signer.replace("beta", "gamma")
    world.coordinator.reports += [world.report_of(1, "beta", digest), forged]
    with pytest.raises(UnavailableError, match="not yet agreed"):
        agent.resync.ensure_model(2)
    world.coordinator.reports.append(world.report_of(1, "gamma", digest))
    agent.resync.ensure_model(2)
    row = agent.study.row()
    assert (row.model_round, row.model_digest) == (1, digest)
    assert (world.site.models.get(digest) == weights).all()


def test_another_model_than_the_agreed_one_is_refused(world):
    agent, weights = behind(world)
    digest = model_digest(weights)
    world.coordinator.reports = [world.report_of(1, name, digest) for name in ("beta", "gamma")]
    world.coordinator.relay = []
    with pytest.raises(UnavailableError, match="no site has sent"):
        agent.resync.ensure_model(2)
    assert world.coordinator.requested == 1
    other = weights + np.float32(1)
    world.coordinator.relay = model_item(world, agent, "beta", other)
    with pytest.raises(UnavailableError, match="waits for the one"):
        agent.resync.ensure_model(2)
    world.coordinator.relay = model_item(world, agent, "beta", other, content_digest=digest)
    with pytest.raises(VerificationError, match="not the one that the sites agreed on"):
        agent.resync.ensure_model(2)
    assert agent.study.row().model_round == 0


@pytest.mark.parametrize("change", ["flip", "drop", "swap-receiver", "resign"])
def test_a_relayed_item_that_was_changed_is_refused(world, change):
    agent, weights = behind(world)
    world.coordinator.reports = [
        world.report_of(1, name, model_digest(weights)) for name in ("beta", "gamma")
    ]
    receiver = "gamma" if change == "swap-receiver" else "alpha"
    items = model_item(world, agent, "beta", weights, receiver=receiver)
    if change == "flip":
        items[1].data = items[1].data[:-1] + bytes([items[1].data[-1] ^ 1])
    if change == "drop":
        items.pop()
    if change == "resign":
        # The coordinator seals a model of its own in beta's name.
        item = rp.RelayItem.FromString(items[0].item.payload)
        items[0].item.CopyFrom(world.sign("gamma", Label.RELAY, item))
    world.coordinator.relay = items
    with pytest.raises(VerificationError):
        agent.resync.ensure_model(2)
    assert agent.study.row().model_round == 0


def test_a_dissenting_site_gives_in_to_a_majority_and_not_to_one(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    own = agent.study.row().model_digest
    weights = np.linspace(0, 1, 23, dtype=np.float32)
    digest = model_digest(weights)
    world.coordinator.reports = [world.report_of(1, "beta", digest), world.report_of(1, "gamma", own)]
    agent.resync.ensure_model(2)
    assert agent.study.row().model_digest == own
    world.coordinator.reports = [world.report_of(1, name, digest) for name in ("beta", "gamma")]
    world.coordinator.relay = model_item(world, agent, "gamma", weights)
    agent.resync.ensure_model(2)
    assert agent.study.row().model_digest == digest


def test_a_verified_model_is_not_given_up_to_one_other_site(world):
    agent = world.admit()
    world.open_round(agent, 1)
    agent.participation.train_and_join(1)
    _, digest = world.plan(agent, 1, names=("alpha", "beta"))
    agent.upload.upload_and_commit(1, digest)
    own = (world.coordinator.uploads[1], world.coordinator.commits[-1])
    world.close(agent, 1, {"alpha": own, "beta": world.peer_update(agent, 1, "beta", 0.25)})
    agent.release.catch_up(1, 1)
    verified = agent.study.row().model_digest
    weights = np.linspace(0, 1, 23, dtype=np.float32)
    world.coordinator.relay = model_item(world, agent, "beta", weights)
    world.coordinator.reports = [world.report_of(1, "beta", model_digest(weights))]
    with pytest.raises(UnavailableError, match="in dispute"):
        agent.resync.ensure_model(2)
    assert agent.study.row().model_digest == verified and world.coordinator.requested == 0
    assert incidents(world) == ["this site's model differs from the only other site's; it keeps its own"]
    world.coordinator.reports = [world.report_of(1, "beta", verified)]
    agent.resync.ensure_model(2)


def test_the_newest_model_is_sealed_for_a_site_that_asks(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    agent.resync.serve(2, ["beta", "stranger"])
    [messages] = world.coordinator.relayed
    item = rp.RelayItem.FromString(messages[0].item.payload)
    assert (item.receiver, item.round) == ("beta", 1)
    assert item.content_digest == agent.study.row().model_digest
    raw = world.site.models.get(item.content_digest).astype("<f4").tobytes()
    assert raw[:40] not in b"".join(message.SerializeToString() for message in messages)


# Keys


def test_the_maker_makes_one_key_and_seals_it_to_the_roster_only(world):
    agent = world.admit()
    agent.keys.serve(world.trust, ["beta", "gamma"])
    world.attach().keys.serve(world.trust, ["beta"])
    digests = {
        rp.RelayItem.FromString(messages[0].item.payload).content_digest
        for messages in world.coordinator.relayed
    }
    assert digests == {agent.keys.get(world.trust).digest(world.trust.digest)}
    assert agent.keys.path(world.trust).stat().st_mode & 0o777 == 0o600
    with pytest.raises(IdentityError):
        agent.keys.serve(world.trust, ["stranger"])


def test_a_key_is_sealed_once_to_a_site_however_often_it_is_asked_for(world):
    agent = world.admit()

    def receivers():
        return [
            rp.RelayItem.FromString(messages[0].item.payload).receiver
            for messages in world.coordinator.relayed
        ]

    agent.keys.serve(world.trust, ["alpha", "beta", "gamma"])
    agent.keys.serve(world.trust, ["alpha", "beta", "gamma"])  # a snapshot from before they were stored
    assert receivers() == ["alpha", "beta", "gamma"]
    agent.keys.serve(world.trust, ["gamma"])
    agent.keys.serve(world.trust, ["beta", "gamma"])  # the coordinator lost beta's since
    assert receivers() == ["alpha", "beta", "gamma", "beta"]


def test_a_key_whose_sending_failed_is_sealed_again(world):
    agent, put = world.admit(), world.coordinator.put_relay

    def fails(messages):
        raise UnavailableError("the network is down")

    world.coordinator.put_relay = fails
    with pytest.raises(UnavailableError):
        agent.keys.serve(world.trust, ["beta"])
    world.coordinator.put_relay = put
    agent.keys.serve(world.trust, ["beta"])
    assert len(world.coordinator.relayed) == 1


def test_a_key_that_is_not_the_makers_is_refused(world):
    manifest = world.manifest()
    manifest.suite.key_maker = "beta"
    world.publish(manifest)
    agent = world.admit()
    with pytest.raises(UnavailableError, match="beta makes"):
        agent.keys.get(world.trust)
    from cipherward.crypto.suites.site_side import study_key_side

    key = study_key_side("shared-key").generate_key(world.params)

    def item(sender, digest):
        member = world.members[sender]
        return list(
            seal_item(
                world.trust,
                member.signing_key,
                str(member.identity),
                kind=rp.RelayItem.KIND_SHARED_KEY,
                sender=sender,
                receiver="alpha",
                round_number=0,
                content=key.reveal(),
                content_digest=digest,
            )
        )

    world.coordinator.relay = item("gamma", key.digest(world.trust.digest))
    with pytest.raises(VerificationError, match="another maker"):
        agent.keys.get(world.trust)
    world.coordinator.relay = item("beta", b"d" * 32)
    with pytest.raises(VerificationError, match="digest"):
        agent.keys.get(world.trust)
    assert not agent.keys.path(world.trust).exists()
    world.coordinator.relay = item("beta", key.digest(world.trust.digest))
    assert agent.keys.get(world.trust).digest(world.trust.digest) == key.digest(world.trust.digest)
