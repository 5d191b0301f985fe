"""What the site knows of each study: accepted manifests, transcript, model. A manifest once accepted for a
(study, version) never changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from cipherward.crypto.labels import Label
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import parse, record_digest
from cipherward.crypto.transcript import transcript_start
from cipherward.errors import ConflictError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.state.tables import evaluations, findings, incidents, manifests, studies

RUNNING, REFUSED, FINISHED, ABORTED = "running", "refused", "finished", "aborted"


@dataclass(frozen=True, slots=True)
class StudyRow:
    """Where a study stands at this site."""

    study: str
    state: str
    reason: str
    data_set: str
    transcript_round: int
    transcript: bytes
    model_round: int
    model_digest: bytes


@dataclass(frozen=True, slots=True)
class Versions:
    """The accepted manifests of a study, oldest first."""

    trusts: tuple[StudyTrust, ...]

    def in_force(self, round_number: int) -> StudyTrust:
        """The newest version whose first round has come."""
        chosen = self.trusts[0]
        for trust in self.trusts[1:]:
            if trust.manifest.first_round <= round_number:
                chosen = trust
        return chosen


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was refused."""

    study: str
    round: int
    recorded_at: int
    message: str


# Made once: both are asked for dozens of times a round, and making a statement costs more than running it.
_ROW = select(*(studies.c[name] for name in StudyRow.__dataclass_fields__)).where(
    studies.c.study == bindparam("study")
)
_VERSIONS = (
    select(manifests.c.signed).where(manifests.c.study == bindparam("study")).order_by(manifests.c.version)
)


class StudyStore:
    """Reads and writes ``studies`` and ``manifests``. Thread-safe: every method is one transaction.

    Only the agent's own store writes ``manifests``; those of other commands live for one look. So they are read once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._versions: dict[str, Versions] = {}

    def names(self) -> list[str]:
        """All studies known, sorted."""
        with self._engine.begin() as connection:
            return list(connection.execute(select(studies.c.study).order_by(studies.c.study)).scalars())

    def row(self, study: str) -> StudyRow | None:
        """The study, or None."""
        with self._engine.begin() as connection:
            found = connection.execute(_ROW, {"study": study}).one_or_none()
        return None if found is None else StudyRow(**found._mapping)

    def versions(self, study: str) -> Versions | None:
        """The accepted manifests, or None if there is none."""
        with self._lock:
            if study not in self._versions:
                with self._engine.begin() as connection:
                    stored = list(connection.execute(_VERSIONS, {"study": study}).scalars())
                if not stored:
                    return None
                self._versions[study] = Versions(tuple(_trust(Signed.FromString(one)) for one in stored))
            return self._versions[study]

    def accept(self, accepted: Sequence[tuple[StudyTrust, Signed]], data_set: str) -> None:
        """Persist the verified versions 1..N of a study that policy allows, in one transaction.

        Raises ConflictError, and writes nothing, if a version was accepted before with another content.
        """
        newest = accepted[-1][0].manifest
        study = newest.study
        values: dict[str, Any] = {"state": RUNNING, "reason": "", "data_set": data_set}
        with self._lock, self._engine.begin() as connection:
            self._versions.pop(study, None)
            for trust, signed in accepted:
                _accept_version(connection, trust, signed)
            started = (studies.c.study == study, studies.c.model_digest != b"")
            if connection.execute(update(studies).where(*started).values(**values)).rowcount == 0:
                # Not there, or refused before it was ever accepted.
                connection.execute(delete(studies).where(studies.c.study == study))
                connection.execute(
                    insert(studies).values(
                        study=study,
                        transcript=transcript_start(study, accepted[0][0].digest),
                        model_digest=newest.initial_weights_digest,
                        **values,
                    )
                )

    def set_state(self, study: str, state: str, reason: str = "") -> None:
        """Record that it is refused, finished or aborted. A study not accepted yet may be refused too."""
        with self._engine.begin() as connection:
            changed = connection.execute(
                update(studies).where(studies.c.study == study).values(state=state, reason=reason)
            )
            if changed.rowcount == 0:
                connection.execute(
                    insert(studies).values(
                        study=study, state=state, reason=reason, transcript=b"", model_digest=b""
                    )
                )

    def set_model(self, study: str, round_number: int, digest: bytes) -> None:
        """The model taken over from a peer, of the state after that round."""
        with self._engine.begin() as connection:
            connection.execute(
                update(studies)
                .where(studies.c.study == study)
                .values(model_round=round_number, model_digest=digest)
            )

    def set_findings(self, study: str, items: Sequence[tuple[str, str]]) -> None:
        """Replace what policy said about the study: (code, text)."""
        with self._engine.begin() as connection:
            connection.execute(delete(findings).where(findings.c.study == study))
            for position, (code, text) in enumerate(items):
                connection.execute(
                    insert(findings).values(study=study, position=position, code=code, text=text)
                )

    def findings(self, study: str) -> list[tuple[str, str]]:
        """What policy said about the study: (code, text)."""
        query = select(findings.c.code, findings.c.text).where(findings.c.study == study)
        with self._engine.begin() as connection:
            return [(row[0], row[1]) for row in connection.execute(query.order_by(findings.c.position))]

    def put_evaluation(self, study: str, round_number: int, figures: Mapping[str, float]) -> None:
        """Figures of the local evaluation of the model after that round (0: the initial one)."""
        with self._engine.begin() as connection:
            where = (evaluations.c.study == study, evaluations.c.round == round_number)
            connection.execute(delete(evaluations).where(*where))
            connection.execute(
                insert(evaluations).values(study=study, round=round_number, figures=json.dumps(dict(figures)))
            )

    def evaluations(self, study: str) -> dict[int, dict[str, float]]:
        """By round."""
        query = select(evaluations.c.round, evaluations.c.figures).where(evaluations.c.study == study)
        with self._engine.begin() as connection:
            return {
                row[0]: json.loads(row[1]) for row in connection.execute(query.order_by(evaluations.c.round))
            }

    def incidents(self) -> list[Incident]:
        """Everything refused, oldest first."""
        columns = [incidents.c[name] for name in Incident.__dataclass_fields__]
        with self._engine.begin() as connection:
            rows = connection.execute(select(*columns).order_by(incidents.c.id))
            return [Incident(**row._mapping) for row in rows]

    def models_in_use(self) -> set[bytes]:
        """Digests of the models in force; their files must stay."""
        with self._engine.begin() as connection:
            return set(connection.execute(select(studies.c.model_digest)).scalars())


def _accept_version(connection: Connection, trust: StudyTrust, signed: Signed) -> None:
    manifest = trust.manifest
    where = (manifests.c.study == manifest.study, manifests.c.version == manifest.version)
    known = connection.execute(select(manifests.c.digest).where(*where)).scalar_one_or_none()
    if known is not None and known != trust.digest:
        raise ConflictError(
            f"the manifest of study {manifest.study}, version {manifest.version}, has changed",
            why="a version once accepted stays as it is",
            fix="Ask the consortium's admin to sign a new version",
        )
    if known is None:
        connection.execute(
            insert(manifests).values(
                study=manifest.study,
                version=manifest.version,
                digest=trust.digest,
                first_round=manifest.first_round,
                signed=signed.SerializeToString(deterministic=True),
            )
        )


def _trust(signed: Signed) -> StudyTrust:
    # Verified when it was accepted; the signature is not needed again to trust our own disk.
    return StudyTrust(parse(signed.payload, Manifest, "manifest"), record_digest(Label.MANIFEST, signed))
