"""What the handlers of calls work with."""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.clock import Clock
from cipherward.coordinator.api.inspection import Inspection
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.daemon.metrics import Metrics
from cipherward.coordinator.daemon.presence import Presence
from cipherward.coordinator.daemon.studies import Studies
from cipherward.coordinator.daemon.traffic import Traffic
from cipherward.coordinator.daemon.watching import Watching
from cipherward.coordinator.daemon.writer import Writer
from cipherward.crypto.pki.store import Member


@dataclass(frozen=True)
class Core:
    """The parts of one coordinator."""

    member: Member
    clock: Clock
    blobs: Blobs
    writer: Writer
    studies: Studies
    watching: Watching
    presence: Presence
    traffic: Traffic
    metrics: Metrics
    inspection: Inspection
