"""What a site does at the end of a round: it believes the close record, opens the sum and reports its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim_records import Abort, Close, Report, chained, digest, model_of, value_of
from sim_resync import INITIAL

from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.errors import ConflictError, ProtocolError, UnavailableError, VerificationError

if TYPE_CHECKING:
    from sim_world import World


class Release:
    """The part of a ``Participant`` that ends rounds."""

    world: World
    site: str
    study: str
    quorum: bool
    journal: Any
    row: Any
    secret: Any
    outbox: dict[int, Any]
    models: set[bytes]
    reported: tuple[int, bytes] | None
    rules: Callable[[int], Any]
    _call: Callable[..., Any]
    _durable: Callable[..., Any]
    _member: Callable[..., Any]
    _opening: Callable[..., Any]
    _plan: Callable[..., Any]
    _post: Callable[..., Any]
    _record: Callable[..., Any]

    def _closing(self, number: int) -> Any:
        record, transcript = self._record(number, "close"), self.row.transcript
        if record is None:
            return None
        if record.previous != transcript:
            raise VerificationError("a record that does not continue the transcript")
        if isinstance(record, Close):
            plan, rule = self._plan(number), self.rules(number)
            least = max(
                rule.minimum_cohort, rule.quorum and effective_threshold(rule.threshold, len(plan.joins))
            )
            places = [plan.sites.index(site) for site in record.sites if site in plan.sites]
            if record.plan != digest(plan) or len(places) != len(record.sites):
                raise VerificationError("a close record of another plan")
            if places != sorted(set(places)) or len(places) < least:
                raise VerificationError("a close record that must not be believed")
        return record

    def _catch_up(self, target: int, newest: int) -> None:
        for number in range(self.row.transcript_round + 1, target + 1):
            ending = self._closing(number)
            if ending is None:
                return
            if isinstance(ending, Close):
                self._check_included(number, ending)
                if number == newest and self._opening(number).model == self.row.model:
                    self._apply_or_settle(number, ending)
                    continue
            self._settle(number, ending)

    def _check_included(self, number: int, closed: Close) -> None:
        ours = [commit for commit in closed.contributions if commit.site == self.site]
        if ours and ours[0] != self.journal.entry(number).commit_record:
            raise VerificationError("a commit that the journal does not have")

    def _settle(self, number: int, ending: Close | Abort) -> None:
        self._durable(lambda: self._chain(number, ending))
        self._over(number)

    def _over(self, number: int) -> None:
        self.outbox.pop(number, None)
        if self.secret is not None and self.secret.round <= number:
            self.secret = None

    def _chain(self, number: int, ending: Close | Abort) -> None:
        if self.row.transcript_round >= number:
            raise ConflictError(f"round {number} is in the transcript already")
        after = chained(self.row.transcript, ending)
        sites = " ".join(ending.sites) if isinstance(ending, Close) else None
        aborted = isinstance(ending, Abort)
        self.journal.write(
            number, closing_record=ending, transcript=after, aborted=aborted, contributors=sites
        )
        self.row.transcript, self.row.transcript_round = after, number

    def _apply_or_settle(self, number: int, closed: Close) -> None:
        try:
            answered = self.journal.entry(number).answered_close
            if answered not in (None, digest(closed)):
                raise VerificationError("two close records")
            total = self._call(lambda: self.world.coordinator.sum(self.study, number))
            if model_of(total) != closed.root:
                raise VerificationError("not the sum that the close record names")
            self._open(number, closed)
        except (VerificationError, ProtocolError):
            self._settle(number, closed)
            return
        before, before_round = self.row.model, self.row.model_round
        model = model_of(value_of(before) + total)
        self._durable(lambda: self.models.add(model))

        def apply() -> None:
            self._chain(number, closed)
            self.journal.write(number, model_digest=model)
            self.row.model, self.row.model_round = model, number

        self._durable(apply)
        self.world.witness.opened(self.study, number, self.site, closed)
        if (opening := self.journal.entry(before_round).round_record) is not None:
            self._durable(lambda: self.models.difference_update({opening.model} - {before, INITIAL}))
        self._over(number)

    def _open(self, number: int, closed: Close) -> None:
        if not self.quorum:
            return
        if self._member(number) is None:
            raise ProtocolError("the round key is gone")
        answers = self._call(lambda: self.world.coordinator.answers(self.study, number, self.site))
        good = [one for one in answers if (one.plan, one.close) == (closed.plan, digest(closed))]
        if len(good) < effective_threshold(self.rules(number).threshold, len(self._plan(number).joins)):
            raise UnavailableError("too few answers")

    def _report(self, number: int) -> None:
        row, entry = self.row, self.journal.entry(number)
        if row.model_round != number or entry.closing_record is None or entry.aborted:
            return
        if self.reported == (number, row.model):
            return
        try:
            close = digest(entry.closing_record)
            self._post("report", Report(self.study, number, self.site, close, row.model))
        except ProtocolError:
            pass
        self.reported = (number, row.model)
