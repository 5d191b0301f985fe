"""A site that was away, or whose model differs from the others', takes the model over from a peer: sealed
to its long-term key, and believed only if enough members of the last U signed for its digest. A site that
has the model seals it for those that ask.

Which model that is, ``standing`` says: that of the last closed round whose sum was opened.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from cipherward.clock import Clock
from cipherward.crypto.records import StudyTrust, agreement_needed
from cipherward.crypto.strategies import state_values
from cipherward.crypto.transcript import model_digest
from cipherward.errors import LateError, UnavailableError, VerificationError
from cipherward.proto.v1.round_pb2 import RelayItem
from cipherward.site_agent.daemon.relay import open_item, seal_item
from cipherward.site_agent.daemon.revocation import is_site_in_force
from cipherward.site_agent.daemon.standing import Standing
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.journal.journal import Entry

TURN_SECONDS = 5.0
"""How long the next site waits for the one before it to send a model that someone asks for."""
REPEAT_SECONDS = 30.0
LEAST_TO_OVERRIDE = 2
"""Other sites that must agree before this site gives up a model it has: one alone proves nothing against a sum
that was verified here."""


class Resync:
    """Models between sites, for one study."""

    def __init__(self, study: Study, clock: Clock) -> None:
        self._study, self._clock = study, clock
        self._standing = Standing(study)
        self._asked: dict[tuple[str, int], float] = {}
        self._sent: dict[tuple[str, int], float] = {}

    def agreed(self, last: Entry) -> tuple[bytes, int] | None:
        """The digest that enough *other* members of the last U reported after that round and how many they
        are, or None."""
        others = [name for name in last.cohort if name != self._study.site.name]
        votes = self._standing.votes(last)
        votes.pop(self._study.site.name, None)
        if not votes:
            return None
        digest, count = Counter(votes.values()).most_common(1)[0]
        needed = agreement_needed(self._study.trust(last.round).manifest.colluders, len(others))
        return (digest, count) if count >= needed else None

    def ensure_model(self, current_round: int, *, ended: bool = False) -> None:
        """Have the model after the last closed round, fetching it from a peer if this site has another one.
        ``ended``: the study is over, there will be no further round.

        Raises UnavailableError while there is no agreement, no peer has sent it, or a single site disputes
        the model that this one has; VerificationError for a model that is not the agreed one.
        """
        study = self._study
        last, row = self._standing.round(current_round, ended=ended), study.row()
        if last is None:
            if row.model_round:
                self._standing.go_back(None)
            return
        agreed, count = self.agreed(last) or (None, 0)
        if row.model_round == last.round and (agreed is None or agreed == row.model_digest):
            return
        if row.model_round > last.round and self._standing.go_back(last):
            return
        if agreed is None:
            raise UnavailableError(
                f"the other sites have not yet agreed on the model after round {last.round} of {study.name}",
                why="not enough of them have reported it",
            )
        if row.model_round == last.round:
            study.log.warning("this site's model differs from the others'", round=last.round, others=count)
            if count < LEAST_TO_OVERRIDE:
                study.journal.incident(
                    last.round, "this site's model differs from the only other site's; it keeps its own"
                )
                raise UnavailableError(
                    f"the model after round {last.round} of {study.name} is in dispute",
                    why="one other site reports another model than the one that this site verified",
                    fix="Compare both sites' logs; the study goes on when they report the same model",
                )
            study.journal.incident(
                last.round, "this site's model differed from the one that the others agreed on"
            )
        self._take_over(current_round, last, agreed)

    def _take_over(self, current_round: int, last: Entry, agreed: bytes) -> None:
        study, site = self._study, self._study.site
        study.client.request_model(study.name, study.row().model_round)
        trust = study.trust(current_round)
        size = 4 * state_values(study.trust(last.round).manifest)

        def accept(item: RelayItem) -> None:
            if (
                item.round != last.round
                or item.content_digest != agreed
                or item.transcript != last.transcript
            ):
                raise UnavailableError(
                    f"{item.sender} sent the model after round {item.round}",
                    why=f"this site waits for the one that the others agreed on after round {last.round}",
                )

        received = open_item(
            study.client.get_relay(study.name, RelayItem.KIND_MODEL),
            trust,
            site.sealing_key,
            receiver=site.name,
            kind=RelayItem.KIND_MODEL,
            max_bytes=size,
            accept=accept,
        )
        if received is None:
            raise UnavailableError(f"no site has sent the model after round {last.round} of {study.name} yet")
        item, content = received
        weights = np.frombuffer(content, dtype="<f4").astype(np.float32)
        if len(content) != size or model_digest(weights) != agreed or not np.isfinite(weights).all():
            raise VerificationError(
                f"the model that {item.sender} sent is not the one that the sites agreed on"
            )
        site.models.put(weights)
        site.studies.set_model(study.name, last.round, agreed)
        study.log.info("took over the model from a peer", sender=item.sender, round=last.round)

    def serve(self, current_round: int, wanted_by: list[str], *, ended: bool = False) -> bool:
        """Seal the newest model for sites that ask, if this site has it and its turn has come.

        Returns whether there is something left to do later.
        """
        study, site = self._study, self._study.site
        last, row = self._standing.round(current_round, ended=ended), study.row()
        self._asked = {key: since for key, since in self._asked.items() if key[0] in wanted_by}
        if last is None or row.model_round != last.round:
            return False
        trust, now, waiting = study.trust(current_round), self._clock.monotonic(), False
        able = [name for name in last.cohort if name in trust.sites and name not in wanted_by]
        turn = able.index(site.name) if site.name in able else len(able)
        for receiver in wanted_by:
            key = (receiver, last.round)
            if receiver == site.name or receiver not in trust.sites:
                continue
            if not is_site_in_force(site, trust, receiver):
                study.log.warning("no model for a revoked site", receiver=receiver)
                continue
            since = self._asked.setdefault(key, now)
            if (
                now - since < turn * TURN_SECONDS
                or now - self._sent.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS
            ):
                waiting = True
                continue
            self._sent[key] = now
            try:
                self._send(trust, receiver, last, row.model_digest)
            except LateError:
                waiting = True  # another site is sending it, or has sent it
                continue
            study.log.info("sealed the model for a peer", receiver=receiver, round=last.round)
        return waiting

    def _send(self, trust: StudyTrust, receiver: str, last: Entry, digest: bytes) -> None:
        study, site = self._study, self._study.site
        study.client.put_relay(
            seal_item(
                trust,
                site.member.signing_key,
                str(site.member.identity),
                kind=RelayItem.KIND_MODEL,
                sender=site.name,
                receiver=receiver,
                round_number=last.round,
                content=site.models.get(digest).astype("<f4").tobytes(),
                content_digest=digest,
                transcript=last.transcript or b"",
            )
        )
