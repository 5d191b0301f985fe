"""What a site takes from a coordinator that sends without end."""

import itertools
from dataclasses import replace

from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon import agent as daemon


class EndlessCall:
    def __init__(self):
        self.given, self.cancelled = 0, False

    def __iter__(self):
        for _ in itertools.repeat(None, 1000):
            self.given += 1
            yield Signed()

    def cancel(self):
        self.cancelled = True


def test_no_more_reports_are_read_than_the_roster_has_sites():
    client, call = CoordinatorClient.__new__(CoordinatorClient), EndlessCall()

    class Channel:
        def __getattr__(self, _):
            return lambda *_args, **_kwargs: lambda *_a, **_k: call

    client.__init__(Channel())
    reports = client.model_reports("heart-1", 1, 3)
    next(reports)
    assert call.given == 1, "what was not asked for is not kept either"
    assert len(list(reports)) == 2
    assert call.given == 3 and call.cancelled


class Log:
    def __init__(self):
        self.errors = []

    def bind(self, **_):
        return self

    def error(self, event, error):
        self.errors.append(error)


def finished(name):
    return cp.StudySnapshot(study=name, state=cp.STUDY_STATE_FINISHED, manifest_version=1)


def test_a_study_with_an_unusable_name_is_ignored(world):
    asked = []
    world.coordinator.record = lambda name, number, kind: asked.append(name)
    agent = daemon.Agent(world.site, world.coordinator, once_finished=False)
    agent._hello(cp.HelloReply(studies=[finished("../../etc"), finished("fine")]))
    agent._snapshot(finished("a b"))
    assert asked == ["fine"]
    assert world.site.studies.row("../../etc") is None


def test_only_so_many_unknown_studies_are_remembered_and_that_is_said_once(world):
    log = Log()
    agent = daemon.Agent(replace(world.site, log=log), world.coordinator, once_finished=False)
    for number in range(daemon.MAX_UNKNOWN_STUDIES + 5):
        agent._snapshot(finished(f"study-{number}"))
    assert len(agent._over) == len(agent._compared) == daemon.MAX_UNKNOWN_STUDIES
    assert len(log.errors) == 1 and "more than 100 studies" in log.errors[0]
