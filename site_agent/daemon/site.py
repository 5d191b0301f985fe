"""What every part of the daemon works with: this hospital's identity, keys, policy, ledger and state."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import Message
from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from cipherward.clock import Clock
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.store import Member
from cipherward.crypto.sealing import SealingKey
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.ledger.ledger import Ledger
from cipherward.site_agent.policy import Policy
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.state.models import ModelStore
from cipherward.site_agent.state.studies import StudyStore
from cipherward.site_agent.training.client import Trainer


@dataclass(frozen=True, eq=False)
class Site:
    """One hospital's agent. Shared by all threads."""

    folder: SiteFolder
    member: Member
    sealing_key: SealingKey = field(repr=False)
    policy: Policy
    ledger: Ledger
    engine: Engine
    studies: StudyStore
    models: ModelStore
    trainer: Trainer
    clock: Clock
    log: FilteringBoundLogger

    @property
    def name(self) -> str:
        """The site's name on rosters."""
        return self.member.identity.name

    def sign(self, label: Label, message: Message) -> Signed:
        """Sign as this site."""
        return self.member.signing_key.sign(label, message, str(self.member.identity))
