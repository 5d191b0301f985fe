"""What a site does at the end of a round: it believes the close record, opens the sum, reports its model, and takes a
model over from a peer where it missed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim_records import Abort, Close, Report, chained, digest, model_of, value_of

from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.records import agreement_needed
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
        model = model_of(value_of(self.row.model) + total)

        def apply() -> None:
            self._chain(number, closed)
            self.journal.write(number, model_digest=model)
            self.row.model, self.row.model_round = model, number

        self._durable(apply)
        self.world.witness.opened(self.study, number, self.site, closed)
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

    # resync

    def _agreed(self, last: Any) -> tuple[bytes | None, int]:
        others = [name for name in last.cohort if name != self.site]
        found = self._call(lambda: self.world.coordinator.reports(self.study, last.round))
        votes = {
            r.site: r.model for r in found if r.site in others and r.close == digest(last.closing_record)
        }
        if not votes:
            return None, 0
        model, count = Counter(votes.values()).most_common(1)[0]
        enough = count >= agreement_needed(self.rules(last.round).colluders, len(others))
        return (model, count) if enough else (None, 0)

    def _ensure_model(self, current: int, *, ended: bool = False) -> None:
        last, row = self.journal.last_closed(), self.row
        if last is None:
            return
        agreed, count = self._agreed(last)
        if row.model_round == last.round and agreed in (None, row.model):
            return
        if agreed is None:
            if self.quorum and (
                ended if current == last.round else self._opening(current).model == row.model
            ):
                return  # no model came of the round
            raise UnavailableError("the other sites have not agreed yet")
        if row.model_round == last.round and count < 2:
            raise UnavailableError("the model is in dispute")
        self._call(lambda: self.world.coordinator.request_model(self.study, self.site))
        models = self.world.coordinator.studies[self.study].models
        item = self._call(lambda: models.get(self.site))
        if item is None or item != (last.round, agreed, last.transcript):
            raise UnavailableError("no site has sent the model yet")

        def take_over() -> None:
            row.model, row.model_round = agreed, last.round

        self._durable(take_over)
