"""A hospital's real agent in one process with everybody else: journal, ledger, keys, records and ciphertexts are real;
its trainer hands out what tells its updates apart. It can be killed around any transaction of its database, and any
call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import event

from cipherward.database import make_engine
from cipherward.errors import CipherwardError, UnavailableError
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.admission import admit
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.study_loop import StudyLoop
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.offline import patient_key
from cipherward.site_agent.policy import load as load_policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore
from cipherward.site_agent.training.client import Description, TrainOutcome

METRICS = np.array([0.5, 0.6, 1.0])
PATIENTS = tuple(f"patient-{index}" for index in range(50))


class Killed(BaseException):
    """kill -9: nobody catches it."""


class Silence:
    """A logger."""

    def bind(self, **_values: Any) -> Silence:
        return self

    def _nothing(self, *_args: Any, **_values: Any) -> None:
        """Said to nobody."""

    info = warning = error = _nothing


class Trainer:
    """Each training gives a place of its own in the model a 1: who is counted twice has a 2 there."""

    def __init__(self, update: Callable[[str, int], np.ndarray], parameters: int) -> None:
        self._update, self._parameters = update, parameters
        self.now = ("", 0)
        """The study and round that are trained for."""

    def describe(self, _task: Any, _source: str) -> Description:
        return Description(PATIENTS, len(PATIENTS), self._parameters)

    def train(self, *_args: Any, **_values: Any) -> TrainOutcome:
        return TrainOutcome(self._update(*self.now), METRICS, 0.1, 0, PATIENTS)

    def evaluate(self, *_args: Any) -> Any:
        raise UnavailableError("nobody evaluates here")


class Accountant:
    """Privacy accounting has tests of its own."""

    def epsilon(self, _events: Any, _delta: float) -> float:
        return 0.1

    def rounds_left(self, *_args: Any) -> int:
        return 1000


class Reply:
    """A call that has been answered: one message, or a stream of them."""

    def __init__(self, received: Any) -> None:
        self._received = received

    def result(self) -> Any:
        return self._received

    def __iter__(self) -> Iterator[Any]:
        return iter(self._received)

    def cancel(self) -> None:
        """It is over."""


class Method:
    """An RPC of the stub."""

    def __init__(self, rpc: str, link: Callable[[str, Any], Any]) -> None:
        self._rpc, self._link = rpc, link

    def future(self, request: Any, **_options: Any) -> Reply:
        return Reply(self._link(self._rpc, request))

    __call__ = future


class Channel:
    """gRPC's channel, for the real client and its stub: every call goes over ``link(rpc, request)``."""

    def __init__(self, link: Callable[[str, Any], Any]) -> None:
        self._link = link

    def _method(self, path: str, **_options: Any) -> Method:
        return Method(path.rpartition("/")[2], self._link)

    unary_unary = unary_stream = stream_unary = _method


class Agent:
    """One run of a hospital's agent, from its start to its death. ``step()`` raises Killed where it dies."""

    def __init__(
        self,
        root: Path,
        member: Any,
        sealing_key: Any,
        clock: Any,
        trainer: Trainer,
        link: Callable[[str, Any], Any],
        step: Callable[[], None],
    ) -> None:
        folder = SiteFolder(root)
        self.engine, self._trainer = make_engine(folder.database_url), trainer
        self.client = CoordinatorClient(Channel(link))  # type: ignore[arg-type]
        # A transaction that has begun is killed before its commit; at the beginning of one, what was committed
        # before it is on disk.
        for moment in ("begin", "commit"):
            event.listen(self.engine, moment, lambda _connection: step())
        self.site = Site(
            folder=folder,
            member=member,
            sealing_key=sealing_key,
            policy=load_policy(folder.policy),
            ledger=Ledger(self.engine, patient_key(folder), accountant=Accountant(), clock=clock),
            engine=self.engine,
            studies=StudyStore(self.engine),
            models=ModelStore(folder.models),
            trainer=trainer,  # type: ignore[arg-type]
            clock=clock,
            log=Silence(),  # type: ignore[arg-type]
        )
        self.loops: dict[str, StudyLoop] = {}
        self.seen: dict[str, pb.StudySnapshot] = {}

    def admit(self, name: str, announced: bytes) -> None:
        admit(self.site, self.client, name, announced)

    def act(self, name: str, *, stale: bool = False) -> CipherwardError | None:
        """One turn of both threads of the study's loop. Raises Killed."""
        try:
            if not stale or name not in self.seen:
                reply = self.client.hello(pb.HelloRequest(protocol=1))
                self.seen.update({one.study: one for one in reply.studies})
            self._trainer.now = (name, self.seen[name].round)
            loop = self.loop(name)
            loop._serve(self.seen[name])
            loop._act(self.seen[name])
        except CipherwardError as error:
            return error
        return None

    def loop(self, name: str) -> StudyLoop:
        if name not in self.loops:
            self.loops[name] = StudyLoop(Study(self.site, self.client, name), lambda: None)
        return self.loops[name]

    def bury(self) -> None:
        """What the operating system does with a process that was killed."""
        for loop in self.loops.values():
            loop._protection.forget(10**6)
        self.engine.dispose()
