"""One round of the quorum suite with four real agents in this process (keys, policy, ledger, journal on disk, training,
encryption as shipped) and a coordinator that the row plays: it may show each agent another record."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import update

from cipherward.crypto.labels import Label
from cipherward.crypto.quorum.sealed import Answering
from cipherward.crypto.records import Plan, verify_plan
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import model_digest
from cipherward.evaluation.threats.kit.hospital import PARAMETERS, STUDY, Hospitals, PlayedCoordinator
from cipherward.evaluation.threats.kit.parties import SITE, SUITE, contribution, prove, tree
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.admission import admit
from cipherward.site_agent.daemon.participation import Participation
from cipherward.site_agent.daemon.quorum.protection import QuorumProtection, plan_context
from cipherward.site_agent.daemon.site import Site
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.upload import Upload
from cipherward.site_agent.state.tables import rounds

ROUND = 1


@dataclass
class Link(PlayedCoordinator):
    """The coordinator as one agent sees it, and all that this agent sent."""

    others: dict[str, Link] = field(default_factory=dict)
    place: int = 0
    committed: dict[bytes, Signed] = field(default_factory=dict)
    """By plan."""
    chunks: dict[bytes, list[bytes]] = field(default_factory=dict)
    sealed: dict[bytes, list[bytes]] = field(default_factory=dict)
    answers: list[cp.PostAnswerRequest] = field(default_factory=list)

    @property
    def _plan(self) -> bytes:
        return bytes(record_digest(Label.PLAN_RECORD, self.records[ROUND, cp.RECORD_KIND_PLAN]))

    def upload_state(self, header: cp.UploadHeader) -> cp.UploadState:
        """What is stored."""
        return cp.UploadState(
            chunks_stored=len(self.chunks.get(header.plan_digest, ())),
            shares_stored=len(self.sealed.get(header.plan_digest, ())),
        )

    def upload(self, messages: Iterable[cp.UploadMessage]) -> cp.UploadState:
        """Keeps it."""
        header, *rest = messages
        plan = header.header.plan_digest
        shares = [one.share.sealed for one in rest if one.HasField("share")]
        self.chunks[plan] = [one.data for one in rest if not one.HasField("share")]
        self.sealed[plan] = shares
        return self.upload_state(header.header)

    def post_commit(self, study: str, record: Signed) -> None:
        """Keeps it."""
        self.committed[rp.Commit.FromString(record.payload).plan_digest] = record

    def shares(self, study: str, number: int, most: int) -> list[cp.ShareMessage]:
        """What the dealers under the plan that it sees have for it."""
        plan = rp.PlanRecord.FromString(self.records[ROUND, cp.RECORD_KIND_PLAN].payload)
        members = [rp.Join.FromString(join.payload).site for join in plan.joins]
        place, digest, found = self.place, self._plan, []
        for dealer in members:
            link = self.others[dealer]
            if digest in link.committed:
                sealed = link.sealed[digest]
                found.append(
                    cp.ShareMessage(
                        sealed=sealed[place],
                        index=place,
                        inclusion=prove(sealed, place),
                        commit=link.committed[digest],
                    )
                )
        return found[:most]

    def post_acknowledgement(self, study: str, record: Signed) -> None:
        """Nobody reads it."""

    def post_answer(self, request: cp.PostAnswerRequest) -> None:
        """Keeps it."""
        self.answers.append(request)


@dataclass
class Agent:
    """One hospital's agent in the round."""

    name: str
    site: Site
    study: Study
    participation: Participation
    protection: QuorumProtection
    upload: Upload
    link: Link
    stack: ExitStack


class PlayedRound:
    """Leaving the context closes the agents. Sites are numbered as in the roster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hospitals = Hospitals(folder)
        weights = np.zeros(PARAMETERS, dtype="<f4")
        self.signed, self.trust = self.hospitals.manifest(weights, collective_verification=False)
        self.names = tuple(self.trust.sites)
        self.params = self.trust.params
        self._initial = model_digest(weights)
        self.links: dict[str, Link] = {}
        for place, name in enumerate(self.names):
            self.links[name] = Link([self.signed], weights.tobytes(), others=self.links, place=place)
        self._opening = Signed()
        self.agents: dict[str, Agent] = {}

    def __enter__(self) -> Self:
        for name in self.names:
            agent = self._agent(name)
            self.agents[name] = agent
            admit(agent.site, agent.study.client, STUDY, self.trust.digest)
        transcript = self.agents[self.names[0]].study.row().transcript
        self._opening = self.hospitals.opening(self.trust, ROUND, self._initial, transcript)
        for name in self.names:
            self.links[name].records[ROUND, cp.RECORD_KIND_ROUND] = self._opening
            self.agents[name].participation.train_and_join(ROUND)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self.agents.values():
            agent.protection.forget(10**6)
            agent.stack.close()

    def _agent(self, name: str) -> Agent:
        stack = ExitStack()
        site = stack.enter_context(self.hospitals.agent(name))
        study = Study(site, cast(CoordinatorClient, self.links[name]), STUDY)
        protection = QuorumProtection(study)
        return Agent(
            name, site, study, Participation(study, protection), protection, Upload(study, protection),
            self.links[name], stack,
        )  # fmt: skip

    # What happens to an agent

    def restart(self, name: str) -> Agent:
        """The agent again, with nothing but its disk."""
        self.stop(name)
        self.agents[name] = self._agent(name)
        return self.agents[name]

    def stop(self, name: str) -> None:
        """Its memory is gone, its files are whole."""
        self.agents[name].protection.forget(10**6)
        self.agents[name].stack.close()

    def snapshot(self, name: str, where: Path) -> None:
        """A backup of its folder."""
        shutil.copytree(self.hospitals.consortium.site_folder(name), where)

    def restore(self, name: str, where: Path) -> Agent:
        """It starts from that backup."""
        self.stop(name)
        folder = self.hospitals.consortium.site_folder(name)
        shutil.rmtree(folder)
        shutil.copytree(where, folder)
        self.agents[name] = self._agent(name)
        return self.agents[name]

    def secret(self, name: str) -> Any:
        """What it has in memory of the round; None if it has nothing."""
        return self.agents[name].protection._secrets.of(ROUND)

    def give_secret(self, name: str, secret: Any) -> None:
        """As if the round key and the opened shares had survived; no answer."""
        held = self.agents[name].protection._secrets.fresh(ROUND, 600.0)
        held.key, held.shares = secret.key, dict(secret.shares)

    def forget(self, name: str, *columns: str) -> None:
        """The journal's check is out: what it has written in these columns is not there, nor the answer in memory."""
        with self.agents[name].site.engine.begin() as connection:
            connection.execute(update(rounds).values(dict.fromkeys(columns)))
        if (secret := self.secret(name)) is not None:
            secret.answer = None

    # What the coordinator makes and shows

    def plan_of(self, members: Sequence[str]) -> tuple[Signed, Plan]:
        """A plan record over the joins of these."""
        opened = record_digest(Label.ROUND_RECORD, self._opening)
        record = rp.PlanRecord(
            manifest_digest=self.trust.digest,
            round_record_digest=opened,
            round=ROUND,
            joins=[self.links[name].joins[-1] for name in members],
        )
        signed = self.hospitals.sign(Label.PLAN_RECORD, record)
        return signed, verify_plan(signed, self.trust, opened, ROUND)

    def show_plan(self, signed: Signed, plan: Plan, names: Iterable[str]) -> None:
        """These agents are given that plan."""
        for name in names:
            self.links[name].records[ROUND, cp.RECORD_KIND_PLAN] = signed
            self.links[name].place = plan.places.get(name, 0)

    def total(self, plan: Plan, who: Sequence[str]) -> list[bytes]:
        """The encrypted sum of what these uploaded under the plan."""
        uploads = [self.links[name].chunks[plan.digest] for name in who]
        length = self.agents[self.names[0]].study.layout(self.trust).length
        with SUITE.chunk_adder(self.params) as adder:
            return [
                adder.add(column, index, length) for index, column in enumerate(zip(*uploads, strict=True))
            ]

    def close_of(self, plan: Plan, who: Sequence[str]) -> Signed:
        """A close record over these."""
        total = self.total(plan, who)
        record = rp.CloseRecord(
            manifest_digest=self.trust.digest,
            plan_digest=plan.digest,
            round=ROUND,
            contributions=[contribution(self.links[name].committed[plan.digest]) for name in who],
            sum_root=tree(total),
            sum_chunk_count=len(total),
            previous_transcript=rp.RoundRecord.FromString(self._opening.payload).previous_transcript,
        )
        return self.hospitals.sign(Label.CLOSE_RECORD, record)

    def answer(self, name: str, close: Signed) -> None:
        """Show that close record to the agent, which answers it or raises."""
        self.links[name].records[ROUND, cp.RECORD_KIND_CLOSE] = close
        self.agents[name].protection.unseal(ROUND)

    def answers(self, close: Signed) -> Iterator[cp.PostAnswerRequest]:
        """All that were given about that close record, one of each agent."""
        digest = record_digest(Label.CLOSE_RECORD, close)
        for link in self.links.values():
            about = [
                one for one in link.answers if rp.Answer.FromString(one.record.payload).close_digest == digest
            ]
            yield from about[:1]

    def open(self, plan: Plan, close: Signed, who: Sequence[str], reader: str) -> NDArray[np.float64]:
        """What the coordinator and ``reader`` open with all answers about that close record. Raises
        UnavailableError if they are too few."""
        key, place = self.secret(reader).key, plan.places[reader]
        digest = record_digest(Label.CLOSE_RECORD, close)
        points = {}
        for posted in self.answers(close):
            record = rp.Answer.FromString(posted.record.payload)
            answering = Answering(self.trust.digest, plan.digest, digest, plan.members, record.site)
            vector = answering.open(place, key, record.encrypted_vector, posted.sealed_keys[place])
            points[plan.places[record.site] + 1] = SITE.add_shares(self.params, [vector])
        combined = next(SITE.combine(self.params, points, plan.threshold, len(who)))
        length = self.agents[self.names[0]].study.layout(self.trust).length
        with SITE.cipher(combined.key, plan_context(self.trust, plan), 1) as cipher:
            return cipher.open_sum(self.total(plan, who), length, len(who))

    def sent(self, name: str) -> NDArray[np.float64]:
        """What that agent encrypted, from its own folder."""
        study = self.agents[name].study
        digest = study.journal.entry(ROUND).update_digest or b""
        return study.outbox(ROUND).update(digest).astype(np.float64)
