"""A refusal that the site's disk does not take is said, and ends nothing; it is recorded when the disk takes it."""

import pytest

from cipherward.errors import EnvironmentProblem, PolicyError, VerificationError
from cipherward.proto.v1.coordinator_pb2 import StudySnapshot
from cipherward.site_agent.daemon.agent import Agent
from cipherward.site_agent.daemon.study_loop import StudyLoop

STUDY = "heart-1"


def rename(world, old, new):
    """The database refuses to write to the table, as a failing disk would."""
    with world.site.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


def test_an_incident(world):
    agent = world.admit()
    loop = StudyLoop(agent.study, lambda: None)
    rename(world, "incidents", "away")
    loop._refused(StudySnapshot(study=STUDY, round=1), VerificationError("it does not hold"))
    rename(world, "away", "incidents")
    loop._refused(StudySnapshot(study=STUDY, round=1), VerificationError("it does not hold"))
    assert [incident.message for incident in world.site.studies.incidents()] == ["CW-300 it does not hold."]


def test_a_refused_study(world):
    world.admit()
    agent = Agent(world.site, world.coordinator, once_finished=False)
    snapshot = StudySnapshot(study=STUDY, round=1, manifest_digest=b"m" * 32)
    rename(world, "studies", "away")
    with pytest.raises(EnvironmentProblem, match="record that the study is refused"):
        agent._refuse(snapshot, PolicyError("no"))
    assert not agent._refused, "it was taken for recorded"
    rename(world, "away", "studies")
    agent._refuse(snapshot, PolicyError("no"))
    assert agent._refused and world.site.studies.row(STUDY).state == "refused"
