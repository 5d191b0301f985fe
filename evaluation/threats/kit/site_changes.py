"""Defences taken out of an agent's process, and what it is made to keep for the row to look at. See ``changed``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from cipherward.evaluation.threats.kit.changes import change, patch


def _folder() -> Path:
    return Path(sys.argv[sys.argv.index("--dir") + 1])


@change
def round_keys_on_disk(_: str) -> None:
    """In studies whose name has ``kept`` in it, the round key is written into the site's folder, as by an agent that
    is to survive restarts."""
    from cipherward.durable import write_secret
    from cipherward.site_agent.daemon.quorum.protection import QuorumProtection

    fields, folder = QuorumProtection.join_fields, _folder()

    def kept(self: Any, trust: Any, round_number: int) -> Any:
        made = fields(self, trust, round_number)
        if "kept" in self._study.name.split("-"):
            content = self._secrets.of(round_number).key.to_bytes()
            write_secret(folder / f"{self._study.name}-{round_number}.key", content, replace=True)
        return made

    patch(QuorumProtection, "join_fields", kept)


@change
def keeps_vectors(_: str) -> None:
    """What this site sent and what it opened stays in its folder: ``sent-STUDY.npy``, ``opened-STUDY.npy``."""
    import numpy as np

    from cipherward.site_agent.daemon import participation
    from cipherward.site_agent.daemon.quorum.protection import QuorumProtection
    from cipherward.site_agent.daemon.shared_key import SharedKeyProtection

    folder, train = _folder(), participation.Participation._train

    def trained(self: Any, round_number: int) -> None:
        train(self, round_number)
        study = self._study
        digest = study.journal.entry(round_number).update_digest
        np.save(folder / f"sent-{study.name}.npy", study.outbox(round_number).update(digest))

    patch(participation.Participation, "_train", trained)
    for protection in (QuorumProtection, SharedKeyProtection):
        opening = protection.open

        def opened(self: Any, *arguments: Any, opening: Any = opening) -> Any:
            values = opening(self, *arguments)
            np.save(folder / f"opened-{self._study.name}.npy", values)
            return values

        patch(protection, "open", opened)


@change
def unchecked_sums(_: str) -> None:
    """Opened sums are believed in studies whose name has ``blind`` in it: neither the zero elements nor the constant
    nor a metric's range count."""
    from cipherward.crypto.quorum.chunks import ChunkOpener
    from cipherward.crypto.suites.payload import OpenedSum
    from cipherward.evaluation.threats.bypass import replaced
    from cipherward.site_agent.daemon import release

    # One at a time: what is taken out is taken out for all studies of the process.
    honest, lock = release.Release._open, threading.Lock()

    def believed(layout: Any, vector: Any, contributors: int, params: Any) -> OpenedSum:
        return OpenedSum(vector[: layout.parameters], vector[layout.parameters : -1])

    def opening(self: Any, *arguments: Any) -> Any:
        with lock:
            if "blind" not in self._study.name.split("-"):
                return honest(self, *arguments)
            with (
                replaced(ChunkOpener, "_check_zero", lambda *_: None),
                replaced(release, "split", believed),
            ):
                return honest(self, *arguments)

    patch(release.Release, "_open", opening)
