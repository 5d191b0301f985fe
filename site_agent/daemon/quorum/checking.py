"""Collective verification: each chunk of the encrypted sum is added up again by c + 1 sites, so that one of them
is honest. Sums of ciphertexts are public arithmetic, and single ciphertexts are safe to show to a site that
cannot open them. Without this a coordinator could alter the sum and nobody would notice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import (
    Coverage,
    check_update_chunk,
    checkers,
    coverage,
    verify_sum_check,
)
from cipherward.crypto.records import Closed
from cipherward.crypto.signing import signer_name
from cipherward.crypto.suites.registry import suite
from cipherward.errors import FormatError, LimitError, UnavailableError, VerificationError
from cipherward.proto.v1.round_pb2 import SumCheck
from cipherward.site_agent.daemon.quorum.own_update import OwnUpdate, own_update
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import StoredSum

BATCH, MOST_IN_A_CALL = 16, 256
"""Chunks of the sum asked for in one call, and of all updates that come for them: a call that breaks off is
repeated, which on a slow link it could not be for ever."""
LEAST_TURN_SECONDS = 5.0
TURNS = 4.0
"""A site that has not signed after this many times as long as this one took is taken to be absent, and the next
in the chunk's order steps in."""
WAIT_SECONDS = 3.0
FIRST_POLL_SECONDS, POLL_SECONDS, POLL_GROWTH = 0.02, 0.25, 1.4
"""Between two looks at what the others signed, longer each time: with few members they are ready soon."""


@contextmanager
def _patient() -> Iterator[None]:
    """A coordinator that is called too often is called again later: its limit says nothing about the sum."""
    try:
        yield
    except LimitError as error:
        raise UnavailableError(error.what, why=error.why) from error


class Checking:
    """One study's. Keeps what this site found about the chunks of the sum of one close record: another one's it
    adds up anew, for a signature that vouches for a sum nobody added up is worse than none."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.forget()

    def forget(self) -> None:
        """The round is over."""
        self._close = b""
        self._places: list[int] = []
        self._found: dict[int, bool] = {}
        self._posted = 0
        self._own_seconds = 0.0
        self._since: float | None = None

    @_patient()
    def check_own_part(self, round_number: int, closed: Closed, total: StoredSum) -> None:
        """Add up the chunks that are this site's to check, and sign what was found."""
        if self._close != closed.digest:
            self.forget()
            self._close = closed.digest
        started = time.monotonic()
        self._check(round_number, closed, total, self._due(closed, len(total.leaves), 0))
        self._own_seconds = max(self._own_seconds, time.monotonic() - started)
        self._post(round_number, closed)

    @_patient()
    def wait_until_covered(self, round_number: int, closed: Closed, total: StoredSum) -> None:
        """Return once every chunk has c + 1 signed checks.

        Raises UnavailableError while some have not, VerificationError for a sum of which a chunk is wrong.
        """
        self.check_own_part(round_number, closed, total)
        end = time.monotonic() + WAIT_SECONDS
        self._since = self._since or time.monotonic()
        pause = FIRST_POLL_SECONDS
        while True:
            asked = time.monotonic()
            state = self._coverage(round_number, closed, len(total.leaves))
            self._check(round_number, closed, total, self._disputed(round_number, state))
            # Said at once: if a right chunk was called wrong, these are the signatures that it lacks.
            self._post(round_number, closed)
            self._refuse_wrong(round_number, closed, state)
            if not state.missing:
                return
            turn = max(LEAST_TURN_SECONDS, TURNS * self._own_seconds)
            later = int((time.monotonic() - self._since) / turn)
            due = set(state.missing) & set(self._due(closed, len(total.leaves), later))
            if due - self._found.keys():
                self._check(round_number, closed, total, sorted(due))
                self._post(round_number, closed)
            elif time.monotonic() > end:
                raise UnavailableError(
                    f"{len(state.missing)} of {len(total.leaves)} chunks of the sum of round {round_number} "
                    "are not checked by enough sites yet"
                )
            else:
                # With many members one look at all checks takes seconds of the coordinator's time as well.
                time.sleep(max(pause, time.monotonic() - asked))
                pause = min(POLL_GROWTH * pause, POLL_SECONDS)

    def _disputed(self, round_number: int, state: Coverage) -> list[int]:
        """Chunks called wrong that this site must add up itself. With c + 1 who call it right, and no more than c
        who call it wrong, an honest site vouches for the chunk: or else one liar would make everybody fetch
        all updates."""
        colluders, missing = self._study.trust(round_number).manifest.colluders, set(state.missing)
        return [index for index, who in state.wrong.items() if index in missing or len(who) > colluders]

    def _due(self, closed: Closed, count: int, later: int) -> list[int]:
        """The chunks that this site is to check when ``later`` sites before it are taken to be absent."""
        name, members = self._study.site.name, closed.plan.members
        last = self._study.trust(closed.record.round).manifest.colluders + later
        if not self._places:
            # 2 ms a chunk with 1,000 members: not at every look.
            self._places = [checkers(closed.digest, members, index).index(name) for index in range(count)]
        return [index for index, place in enumerate(self._places) if place <= last]

    def _check(self, round_number: int, closed: Closed, total: StoredSum, indices: Sequence[int]) -> None:
        left = [index for index in indices if index not in self._found]
        trust = self._study.trust(round_number)
        if not left:
            return
        own = own_update(self._study, round_number, closed)
        with suite(trust.manifest.suite.name).chunk_adder(trust.params) as adder:
            size = max(1, min(BATCH, MOST_IN_A_CALL // len(closed.cohort)))
            for start in range(0, len(left), size):
                batch = left[start : start + size]
                chunks = self._update_chunks(round_number, closed, batch, own)
                for index in batch:
                    added = adder.add(islice(chunks, len(closed.cohort)), index, total.length)
                    self._found[index] = merkle.leaf_hash(added) == total.leaves[index]

    def _update_chunks(
        self, round_number: int, closed: Closed, batch: list[int], own: OwnUpdate | None
    ) -> Iterator[bytes]:
        """Each chunk of the batch from every update in U, as its site committed it."""
        study = self._study
        stream = study.client.update_chunks(study.name, round_number, batch, without_own=own is not None)
        for index in batch:
            for contribution in closed.record.contributions:
                if own is not None and contribution.site == study.site.name:
                    yield own.chunk(index)
                    continue
                chunk = next(stream, None)
                if chunk is None or chunk.index != index:
                    raise FormatError("the coordinator sends other chunks of the updates than were asked for")
                check_update_chunk(chunk, closed.record, contribution)
                yield chunk.data

    def _post(self, round_number: int, closed: Closed) -> None:
        if self._posted == len(self._found):
            return
        study = self._study
        signed = study.site.sign(
            Label.SUM_CHECK,
            SumCheck(
                manifest_digest=study.trust(round_number).digest,
                close_digest=closed.digest,
                round=round_number,
                site=study.site.name,
                right=sorted(index for index, right in self._found.items() if right),
                wrong=sorted(index for index, right in self._found.items() if not right),
            ),
        )
        study.client.post_sum_check(study.name, signed)
        self._posted = len(self._found)

    def _coverage(self, round_number: int, closed: Closed, count: int) -> Coverage:
        study, trust = self._study, self._study.trust(round_number)
        checks: dict[str, SumCheck] = {}
        for signed in study.client.sum_checks(study.name, round_number, len(closed.plan.members)):
            name = signer_name(signed)
            try:
                checks[name] = verify_sum_check(signed, trust, closed.plan, closed.digest, count, name)
            except VerificationError as error:
                study.log.warning(
                    "a sum check is refused", round=round_number, sender=name[:80], error=str(error)
                )
        return coverage(checks, trust.manifest.colluders, count)

    def _refuse_wrong(self, round_number: int, closed: Closed, state: Coverage) -> None:
        wrong = sorted(index for index, right in self._found.items() if not right)
        if wrong:
            self._study.journal.incident(
                round_number, f"chunk {wrong[0]} of the sum is not the sum of the updates", closed.signed
            )
            raise VerificationError(
                f"chunk {wrong[0]} of the sum of round {round_number} is not the sum of the updates",
                why="this site added it up itself: the coordinator altered the sum",
                fix="Tell the consortium's admin; the signed close record is kept as evidence",
            )
        for index, accusers in state.wrong.items():
            # Found right here, or by c + 1 others: whoever says otherwise is mistaken or lies.
            names = ", ".join(accusers)
            self._study.log.warning(
                "a right chunk was called wrong", round=round_number, chunk=index, members=names
            )
