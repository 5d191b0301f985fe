"""A site, as the agent's ``study_loop`` and what it drives: everything promised is journalled before it is said, round
keys and what they opened are in memory only. Ciphertexts are names of what they hold, and open for whoever would hold
the key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim_coordinator import PIECES
from sim_journal import Journal, has_joined_with
from sim_records import (
    Abort,
    Acknowledgement,
    Answer,
    Close,
    Commit,
    Join,
    Plan,
    Report,
    chained,
    digest,
    model_of,
    value_of,
)

from cipherward.coordinator.rounds.state import Life, Phase, Rules
from cipherward.crypto.manifest_rules import effective_threshold
from cipherward.crypto.records import agreement_needed
from cipherward.errors import ConflictError, LateError, ProtocolError, UnavailableError, VerificationError

if TYPE_CHECKING:
    from sim_world import World


class Died(Exception):
    """The site's process is gone."""


@dataclass
class Secret:
    """Quorum: in memory only."""

    round: int
    key: bytes
    shares: dict[bytes, bool] = field(default_factory=dict)
    answer: Answer | None = None


@dataclass
class Row:
    """The study's row in the site's database, written in one transaction with the journal."""

    transcript: bytes
    transcript_round: int = 0
    model: bytes = model_of(0)
    model_round: int = 0
    ended: bool = False


class Participant:
    """One site in one study. ``journal``, ``row``, ``outbox`` and ``shared_keys`` are its disk."""

    def __init__(self, world: World, site: str, study: str, transcript: bytes) -> None:
        self.world, self.site, self.study = world, site, study
        self.journal, self.row = Journal(), Row(transcript)
        self.outbox: dict[int, dict[Any, Any]] = {}
        self.shared_keys: dict[int, bytes] = {}
        self.restart()

    def restart(self) -> None:
        """With nothing but the disk."""
        self.secret: Secret | None = None
        self.reported: tuple[int, bytes] | None = None
        self.snapshot: dict[str, Any] | None = None

    # Disk and network

    def _durable(self, write: Callable[[], None]) -> None:
        self.world.network.step(self.site)
        write()
        self.world.network.step(self.site)

    def _write(self, number: int, **values: Any) -> None:
        self._durable(lambda: self.journal.write(number, **values))

    def _call(self, message: Callable[[], Any], *, is_post: bool = False) -> Any:
        return self.world.network.call(self.site, message, is_post=is_post)

    def _post(self, kind: str, record: Any) -> None:
        self.world.witness.sent(kind, record)
        handler = getattr(self.world.coordinator, kind)
        self._call(lambda: handler(record), is_post=True)
        self.world.witness.replied(kind, record)

    def _record(self, number: int, kind: str) -> Any:
        return self._call(lambda: self.world.coordinator.record(self.study, number, kind))

    def rules(self, number: int) -> Rules:
        return self.world.coordinator.studies[self.study].rules.at(number)

    @property
    def quorum(self) -> bool:
        return self.rules(1).quorum

    # study_loop

    def act(self, *, stale: bool = False) -> None:
        """Everything that the newest snapshot, or one that has not been replaced yet, asks for."""
        if not stale or self.snapshot is None:
            self.snapshot = self._call(lambda: self.world.coordinator.snapshot(self.study))
        snapshot = self.snapshot
        if self.site not in self.rules(snapshot["round"]).roster:
            return
        self._serve(snapshot)  # the agent's other thread, which goes on behind the study's end
        if self.row.ended:
            return
        number = snapshot["round"]
        if snapshot["life"] is not Life.RUNNING:
            self._finish(snapshot)
            return
        match snapshot["phase"]:
            case Phase.OPEN | Phase.KEYS:
                self._catch_up(number - 1, number)
                if snapshot["phase"] is Phase.OPEN:
                    if snapshot["opening"] != digest(self._opening(number)):
                        raise VerificationError("the round was opened twice")
                    self._ensure_model(number)
                self._prepare(number)
                if snapshot["phase"] is Phase.OPEN:
                    self._train_and_join(number)
            case Phase.UPLOAD:
                self._upload_and_commit(number, snapshot["plan"])
            case Phase.ACKNOWLEDGE:
                self._acknowledge(number)
            case Phase.UNSEAL:
                self._answer(number)
            case Phase.RELEASE:
                self._catch_up(number, number)
                self._report(number)
                self._ensure_model(number)
                self._report(number)
            case _:
                self._catch_up(number - 1, number)

    def _finish(self, snapshot: dict[str, Any]) -> None:
        number = snapshot["round"]
        self._catch_up(number, number)
        self.secret = None
        if snapshot["life"] is Life.FINISHED:
            self._ensure_model(number, ended=True)
        self._durable(lambda: setattr(self.row, "ended", True))

    def _serve(self, snapshot: dict[str, Any]) -> None:
        if snapshot["keys"] and self.site == self.rules(snapshot["round"]).roster[0]:
            self._prepare(snapshot["round"])
            key = self.shared_keys[self.rules(snapshot["round"]).version]
            for receiver in snapshot["keys"]:
                self._call(lambda r=receiver: self.world.coordinator.put_key(self.study, r, key))
                self.world.witness.key_stored(self.study, self.rules(snapshot["round"]).version, receiver)
        last = self.journal.last_closed()
        if last is None or self.row.model_round != last.round:
            return
        item = (last.round, self.row.model, last.transcript)
        for receiver in snapshot["models"]:
            if receiver != self.site:
                try:
                    self._call(lambda r=receiver: self.world.coordinator.put_model(self.study, r, item))
                except LateError:
                    continue

    # participation

    def _opening(self, number: int) -> Any:
        known = self.journal.entry(number).round_record
        if known is None:
            known = self._record(number, "round")
            if known is None:
                raise UnavailableError("no round record yet")
            self._write(number, round_record=known)
        return known

    def _prepare(self, number: int) -> None:
        """The shared key is here: made by the first site of the roster, else from the relay."""
        rule = self.rules(number)
        if rule.quorum or rule.version in self.shared_keys:
            return
        if self.site == rule.roster[0]:
            key = b"K%d" % rule.version
        else:
            stored = self.world.coordinator.studies[self.study].keys
            key = self._call(lambda: stored.get((rule.version, self.site)))
            if key is None:
                raise UnavailableError("the shared key is not here yet")
        self._durable(lambda: self.shared_keys.__setitem__(rule.version, key))

    def _train_and_join(self, number: int) -> None:
        opening, entry = self._opening(number), self.journal.entry(number)
        if opening.previous != self.row.transcript or opening.model != self.row.model:
            raise VerificationError("the round starts from another history or model")
        if entry.update_digest is None:
            self._write(number, started=True)
            value = self.world.weight(self.study, number, self.site)
            self._durable(lambda: self.outbox.setdefault(number, {}).update(update=value))
            self._write(number, update_digest=value)
        join = entry.join_record
        if join is None or (self.quorum and (self.secret is None or self.secret.key != join.key)):
            if self.quorum:
                self.secret = Secret(number, self.world.fresh())
                key = self.secret.key
            else:
                key = self.shared_keys[self.rules(number).version]
            join = Join(self.study, number, self.site, digest(opening), key)
            self._durable(lambda: self.journal.put_join(number, join))
        self._post("join", join)

    # upload

    def _plan(self, number: int, announced: bytes = b"") -> Plan:
        opening, known = self._opening(number), self.journal.entry(number).plan_record
        if known is not None and announced in (b"", digest(known)):
            return known
        plan = self._record(number, "plan")
        if plan is None:
            raise UnavailableError("no plan record yet")
        if plan.opening != digest(opening) or len(plan.sites) < self.rules(number).minimum_cohort:
            raise VerificationError("a plan that must not be believed")
        self._durable(lambda: self.journal.accept_plan(number, plan))
        return plan

    def _upload_and_commit(self, number: int, announced: bytes) -> None:
        if self.journal.entry(number).join_record is None:
            return
        plan, entry = self._plan(number, announced), self.journal.entry(number)
        if entry.commit_record is None:
            own = [join for join in plan.joins if join.site == self.site]
            if not own:
                return
            if not has_joined_with(entry, own[0]):
                raise VerificationError("a join in this site's name that it did not post")
            attempt, root = self._encrypt(number)
            self._send(number, attempt, root, digest(plan))
            commit = Commit(self.study, number, self.site, digest(plan), attempt, root)
            self._write(number, commit_record=commit)
        self._post("commit", self.journal.entry(number).commit_record)

    def _encrypt(self, number: int) -> tuple[int, bytes]:
        entry = self.journal.entry(number)
        if entry.attempt and entry.ciphertext_root and entry.attempt in self.outbox[number]:
            return entry.attempt, entry.ciphertext_root
        attempt = 0

        def begin() -> None:
            nonlocal attempt
            attempt = self.journal.next_attempt(number)

        self._durable(begin)
        root = self.world.encrypted(self.outbox[number]["update"], (self.study, number, self.site, attempt))
        self._durable(lambda: self.outbox[number].__setitem__(attempt, root))
        self._write(number, chunk_count=PIECES, ciphertext_root=root)
        return attempt, root

    def _send(self, number: int, attempt: int, root: bytes, plan: bytes) -> None:
        coordinator, whole = self.world.coordinator, PIECES + self.quorum
        where = (self.study, number, self.site, attempt, plan)
        stored = self._call(lambda: coordinator.upload_state(*where))
        if stored < whole:
            pieces = [(root, index) for index in range(stored, whole)]
            if cut := self.world.network.cuts(len(pieces)):
                stored = self._call(lambda: coordinator.upload(*where, pieces[:cut]))
                self.world.witness.stored(self.study, number, self.site, attempt, stored)
                raise UnavailableError("the link was cut")
            stored = self._call(lambda: coordinator.upload(*where, pieces))
            self.world.witness.stored(self.study, number, self.site, attempt, stored)
        if stored != whole:
            raise VerificationError("the coordinator stored something else")

    # quorum

    def _member(self, number: int) -> Secret | None:
        if self.journal.entry(number).join_record is None:
            return None
        own = [join for join in self._plan(number).joins if join.site == self.site]
        held = own and self.secret is not None and self.secret.key == own[0].key
        return self.secret if held else None

    def _open_shares(self, number: int, secret: Secret) -> Acknowledgement:
        opened, bad = [], []
        for commit in self._call(lambda: self.world.coordinator.commits(self.study, number, self.site)):
            item = (commit.site, commit.attempt)
            if self.world.is_spoilt(self.study, number, commit.site, self.site):
                bad.append(item)
            else:
                secret.shares[digest(commit)] = True
                opened.append(item)
        plan = digest(self._plan(number))
        return Acknowledgement(self.study, number, self.site, plan, tuple(opened), tuple(bad))

    def _acknowledge(self, number: int) -> None:
        secret = self._member(number)
        if secret is None:
            return
        if self.journal.entry(number).acknowledgement is None:
            self._write(number, acknowledgement=self._open_shares(number, secret))
        self._post("acknowledgement", self.journal.entry(number).acknowledgement)

    def _answer(self, number: int) -> None:
        secret = self._member(number)
        closed = None if secret is None else self._closing(number)
        if secret is None or not isinstance(closed, Close):
            return
        if secret.answer is None:
            if self.journal.entry(number).acknowledgement is None:
                self._open_shares(number, secret)
            if any(digest(commit) not in secret.shares for commit in closed.contributions):
                raise ProtocolError("this site cannot answer")
            self._write(number, answered_close=digest(closed))
            plan = closed.plan
            secret.answer = Answer(
                self.study, number, self.site, plan, digest(closed), self.world.fresh_number()
            )
        elif self.journal.entry(number).answered_close != digest(closed):
            raise VerificationError("the round was closed twice")
        self._post("answer", secret.answer)

    # release

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
