"""A site, as the agent's ``study_loop`` and what it drives: everything promised is journalled before it is said, round
keys and what they opened are in memory only. Ciphertexts are names of what they hold, and open for whoever would hold
the key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim_journal import Journal, has_joined_with
from sim_records import (
    Acknowledgement,
    Answer,
    Close,
    Commit,
    Join,
    Plan,
    digest,
)
from sim_release import Release
from sim_resync import INITIAL, Resync
from sim_stored import PIECES

from cipherward.coordinator.rounds.state import Life, Phase, Rules
from cipherward.errors import ProtocolError, UnavailableError, VerificationError

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
    model: bytes = INITIAL
    model_round: int = 0
    ended: bool = False


class Participant(Release, Resync):
    """One site in one study. ``journal``, ``row``, ``outbox``, ``models`` and ``shared_keys`` are its disk."""

    def __init__(self, world: World, site: str, study: str, transcript: bytes) -> None:
        self.world, self.site, self.study = world, site, study
        self.journal, self.row = Journal(), Row(transcript)
        self.outbox: dict[int, dict[Any, Any]] = {}
        self.models, self.shared_keys = {INITIAL}, dict[int, bytes]()
        self.restart()

    def restart(self) -> None:
        """With nothing but the disk."""
        self.secret: Secret | None = None
        self.reported: tuple[int, bytes] | None = None
        self.snapshot: dict[str, Any] | None = None
        opening = self.journal.entry(self.row.model_round).round_record
        self.models &= {self.row.model, INITIAL, *([opening.model] if opening else [])}  # as state.tidy

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
        self._serve_models(snapshot)

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
