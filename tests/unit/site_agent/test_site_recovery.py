"""Whom a site believes that comes back: restored backups, models and keys from peers. Each rule: the honest case
passes, one change is refused."""

import numpy as np
import pytest

from cipherward.crypto.labels import Label
from cipherward.crypto.transcript import model_digest
from cipherward.errors import (
    IdentityError,
    RollbackError,
    UnavailableError,
    VerificationError,
)
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.site_agent.daemon.agent import Agent
from cipherward.site_agent.daemon.relay import seal_item
from cipherward.site_agent.daemon.rollback import check_own_commit

STUDY = "heart-1"


def incidents(world):
    return [incident.message for incident in world.site.studies.incidents()]


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
