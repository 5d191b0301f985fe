"""A coordinator: the real state machine, with what ``coordinator.api`` checks before a message becomes an event and
``coordinator.daemon`` does around each step, over a store that survives a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim_records import Abort, Close, Plan, Record, Round, chained, digest, model_of
from sim_stored import CLOSED, PIECES, Died, Stored

from cipherward.clock import ManualClock
from cipherward.coordinator.rounds import codec, effects, events, machine
from cipherward.coordinator.rounds.state import Life, Phase, State, StudyRules
from cipherward.errors import ConflictError, LateError, NotFoundError, ProtocolError, VerificationError


class Coordinator:
    """One process, started again after each crash. ``weigh`` tells the value of an update by its root; ``on_record``
    is told of every record that is signed."""

    def __init__(
        self,
        clock: ManualClock,
        weigh: Callable[[bytes], int],
        on_record: Callable[[str, Stored, int, str, Record], None],
    ) -> None:
        self.clock, self._weigh, self._on_record = clock, weigh, on_record
        self.studies: dict[str, Stored] = {}
        self.booted = -1e6  # up for days: after a reboot the clock shows less
        self.dies: str | None = None
        """Where in the next transaction the process is killed: before it, or after it."""
        self.sums: dict[str, effects.StartSum] = {}
        """In memory: sums that are being made."""

    def monotonic(self) -> float:
        """Seconds since the machine was started."""
        return self.clock.monotonic() - self.booted

    def create(self, name: str, rules: StudyRules, transcript: bytes) -> None:
        state, todo = machine.start(rules, model_of(0), self.monotonic())
        study = self.studies[name] = Stored(rules, state, transcript)
        self._save(name, study, state, todo)

    def restart(self, *, reboot: bool = False) -> None:
        """From the disk alone. After a reboot the monotonic clock means something else."""
        self.dies, self.sums = None, {}
        if reboot:
            self.booted = self.clock.monotonic() - self.clock.monotonic() % 7
        for name, study in self.studies.items():
            study.state = codec.decode(codec.encode(study.state))
            self.apply(name, events.Restarted())
            if (again := machine.owed(study.state)) is not None:
                self.sums[name] = again

    def apply(self, name: str, event: events.Event, also: Callable[[], None] | None = None) -> None:
        """``Studies.apply``: one transaction. ``also`` raises before it writes anything."""
        study = self.studies[name]
        state, todo = machine.step(study.rules, study.state, event, self.monotonic())
        if state is study.state and not todo and also is None:
            return
        if self.dies == "before":
            raise Died
        if also is not None:
            also()
        after = self._save(name, study, state, todo)
        if self.dies == "after":
            raise Died
        self.sums.update(after)

    def _save(
        self, name: str, study: Stored, state: State, todo: tuple[effects.Effect, ...]
    ) -> dict[str, effects.StartSum]:
        sums = {}
        for effect in todo:
            match effect:
                case effects.SignRound(number, model):
                    record: Record = Round(name, number, model, study.transcript, self.clock.now())
                    self._record(name, study, number, "round", record)
                case effects.SignPlan(number, sites):
                    joins = tuple(study.posts[number, "join", site] for site in sites)
                    opening = study.digest_of(number, "round")
                    self._record(name, study, number, "plan", Plan(name, number, opening, joins))
                case effects.SignClose(number, sites, root, _):
                    commits = tuple(study.posts[number, "commit", site] for site in sites)
                    plan, now = study.digest_of(number, "plan"), self.clock.now()
                    record = Close(name, number, plan, commits, root, study.transcript, now)
                    self._record(name, study, number, "close", record)
                    study.transcript = chained(study.transcript, record)
                case effects.SignAbort(number, reason):
                    record = Abort(name, number, reason, study.transcript, self.clock.now())
                    self._record(name, study, number, "close", record)
                    study.transcript = chained(study.transcript, record)
                case effects.NoteUnopened(number, _):
                    study.unopened.add(number)
                case effects.StartSum():
                    sums[name] = effect
                case effects.Discard(number):
                    study.pieces = {key: v for key, v in study.pieces.items() if key[0] != number}
                    study.sums.pop(number - 1, None)
                    gone = ("acknowledgement", "answer")
                    study.posts = {k: v for k, v in study.posts.items() if k[0] != number or k[1] not in gone}
        study.state = state
        return sums

    def _record(self, name: str, study: Stored, number: int, kind: str, record: Record) -> None:
        assert (number, kind) not in study.records, f"round {number} has two {kind} records"
        study.records[number, kind] = record
        self._on_record(name, study, number, kind, record)

    def tick(self) -> None:
        """``Studies.tick``."""
        for name, study in self.studies.items():
            ticked = events.Ticked()
            if machine.step(study.rules, study.state, ticked, self.monotonic())[0] is not study.state:
                self.apply(name, ticked)

    # What the sum's runner does

    def make_sum(self, name: str) -> None:
        """Read, add, store, tell the machine: the process may be killed between any two of them."""
        job, study = self.sums.pop(name), self.studies[name]
        state = study.state
        if state.phase is not Phase.SUM or state.round != job.round or not state.running:
            return  # the runner looks before it adds: the updates may be gone
        assert study.state.commits.keys() >= set(job.contributors), "a sum of what is not committed"
        chosen = [(job.round, site, study.state.commits[site].attempt) for site in job.contributors]
        total = sum(self._weigh(study.pieces[key][0][0]) for key in chosen)
        assert study.sums.setdefault(job.round, total) == total, "a sum was made of two sets"
        self.apply(name, events.Summed(job.round, model_of(total), PIECES))

    # Posts

    def _repeat(self, study: Stored, kind: str, record: Record) -> bool:
        before = study.posts.get((record.round, kind, record.site))
        if before is None or before == record:
            return before is not None
        if kind in ("commit", "acknowledgement", "answer"):
            raise ConflictError(f"{record.site} already posted another {kind}")
        return False

    @staticmethod
    def _of_this_round(study: Stored, number: int) -> None:
        if number < study.state.round:
            raise LateError(f"round {number} is over")
        if number > study.state.round:
            raise ProtocolError(f"round {number} is not open")
        if not study.state.running:
            raise LateError("the study is over")

    def _post(self, kind: str, record: Record, event: events.Event, check: Callable[[], None]) -> None:
        study = self.studies[record.study]

        def also() -> None:
            check()
            study.posts[record.round, kind, record.site] = record

        self.apply(record.study, event, also)

    def join(self, record: Record) -> None:
        study = self.studies[record.study]
        if self._repeat(study, "join", record):
            return
        self._of_this_round(study, record.round)
        opening = study.digest_of(record.round, "round")
        if not opening:
            raise ProtocolError("not open yet")
        if record.opening != opening:
            raise VerificationError("another opening")

        def check() -> None:
            for (number, kind, site), other in study.posts.items():
                if (number, kind) == (record.round, "join") and site != record.site and study.quorum:
                    assert other.key != record.key, "two sites made one key"

        shared = b"" if study.quorum else record.key
        self._post(
            "join", record, events.JoinPosted(record.site, record.round, digest(record), shared), check
        )

    def commit(self, record: Record) -> None:
        study = self.studies[record.study]
        if self._repeat(study, "commit", record):
            return
        self._of_this_round(study, record.round)
        if record.plan != study.digest_of(record.round, "plan") or not record.plan:
            raise VerificationError("another plan")

        def check() -> None:
            stored = study.pieces.get((record.round, record.site, record.attempt), [])
            if stored != [(record.root, index) for index in range(PIECES + study.quorum)]:
                raise ProtocolError("upload the rest first")

        event = events.CommitPosted(record.site, record.round, record.attempt, digest(record))
        self._post("commit", record, event, check)

    def acknowledgement(self, record: Record) -> None:
        study = self._of_plan(record, "acknowledgement")
        if study is None:
            return

        def check() -> None:
            named = dict((*record.opened, *record.unopenable))
            if named != {site: commit.attempt for site, commit in study.state.commits.items()}:
                raise VerificationError("not the shares that were dealt")

        bad = frozenset(site for site, _ in record.unopenable)
        event = events.AcknowledgementPosted(record.site, record.round, bad)
        self._post("acknowledgement", record, event, check)

    def answer(self, record: Record) -> None:
        study = self._of_plan(record, "answer")
        if study is None:
            return
        if study.state.phase not in CLOSED:
            raise ProtocolError("not closed")
        if record.close != study.digest_of(record.round, "close"):
            raise VerificationError("another close record")
        event = events.AnswerPosted(record.site, record.round, digest(record))
        self._post("answer", record, event, lambda: None)

    def _of_plan(self, record: Record, kind: str) -> Stored | None:
        """None for a repeat."""
        study = self.studies[record.study]
        if self._repeat(study, kind, record):
            return None
        self._of_this_round(study, record.round)
        if record.plan != study.digest_of(record.round, "plan") or not record.plan:
            raise VerificationError("another plan")
        return study

    def report(self, record: Record) -> None:
        study = self.studies[record.study]
        if self._repeat(study, "report", record):
            return

        def check() -> None:
            if record.close != study.digest_of(record.round, "close"):
                raise VerificationError("another close record")

        self._post("report", record, events.ReportPosted(record.site, record.round, record.model), check)

    # Uploads

    def _upload_view(self, name: str, number: int, site: str, plan: bytes) -> Stored:
        study = self.studies[name]
        if number < study.state.round or not study.state.running:
            raise LateError("the upload came late")
        found = study.records.get((study.state.round, "plan"))
        if number > study.state.round or found is None:
            raise ProtocolError("no plan yet")
        if digest(found) != plan or site not in found.sites:
            raise ConflictError("another plan")
        return study

    def upload_state(self, name: str, number: int, site: str, attempt: int, plan: bytes) -> int:
        study = self._upload_view(name, number, site, plan)
        return len(study.pieces.get((number, site, attempt), ()))

    def upload(
        self, name: str, number: int, site: str, attempt: int, plan: bytes, pieces: list[tuple[bytes, int]]
    ) -> int:
        """Each piece is a transaction of its own."""
        study = self._upload_view(name, number, site, plan)
        committed, key = study.state.commits.get(site), (number, site, attempt)
        if committed is not None and committed.attempt != attempt:
            raise ConflictError(f"{site} committed another attempt")
        if committed is None:
            self._still_open(study, number)
            for other in [k for k in study.pieces if k[:2] == (number, site)]:
                if other[2] > attempt:
                    raise ConflictError(f"{site} already began attempt {other[2]}")
                if other[2] < attempt:
                    del study.pieces[other]
        for piece in pieces:
            stored = study.pieces.get(key, [])
            if piece[1] != len(stored):
                raise ProtocolError("out of order")
            self._still_open(study, number)
            if site in study.state.commits:
                raise ConflictError(f"{site} already committed")
            if self.dies == "before":
                raise Died
            study.pieces[key] = [*stored, piece]
            if self.dies == "after":
                raise Died
        return len(study.pieces.get(key, ()))

    @staticmethod
    def _still_open(study: Stored, number: int) -> None:
        state = study.state
        if state.round != number or state.phase is not Phase.UPLOAD or not state.running:
            raise LateError("the upload came late")

    # Relay

    def put_key(self, name: str, receiver: str, key: bytes) -> None:
        study = self.studies[name]
        version = study.rules.at(study.state.round).version
        known = study.keys.get((version, receiver))
        if known is not None:
            if known != key:
                raise ConflictError(f"{receiver} was already sent another key")
            return
        self.apply(
            name,
            events.KeyStored(receiver, version),
            lambda: study.keys.__setitem__((version, receiver), key),
        )

    def put_model(self, name: str, receiver: str, item: tuple[int, bytes, bytes]) -> None:
        study = self.studies[name]
        if item[0] != study.newest_model_round or receiver not in study.wanted:
            raise LateError("no such model is wanted")

        def also() -> None:
            study.models[receiver] = item
            study.wanted.discard(receiver)

        self.apply(name, events.Ticked(), also)

    def request_model(self, name: str, receiver: str) -> None:
        study = self.studies[name]
        if study.newest_model_round > 0:
            self.apply(name, events.Ticked(), lambda: study.wanted.add(receiver))

    # Downloads

    def snapshot(self, name: str) -> dict[str, Any]:
        study, number = self.studies[name], self.studies[name].state.round
        state = study.state
        wanted = state.running and state.phase is Phase.KEYS
        return {
            "life": state.life,
            "phase": None if state.life is Life.ABORTED else state.phase,
            "round": number,
            "opening": study.digest_of(number, "round"),
            "plan": study.digest_of(number, "plan"),
            "keys": machine.keys_missing(study.rules, state, number) if wanted else (),
            "models": tuple(sorted(study.wanted)),
        }

    def record(self, name: str, number: int, kind: str) -> Record | None:
        return self.studies[name].records.get((number, kind))

    def commits(self, name: str, number: int, site: str) -> list[Record]:
        """What ``GetShares`` sends: one message for each dealer, in the order of J."""
        study = self._member(name, number, site, Phase.ACKNOWLEDGE)
        plan = study.records[number, "plan"]
        return [study.posts[number, "commit", s] for s in plan.sites if s in study.state.commits]

    def answers(self, name: str, number: int, site: str) -> list[Record]:
        study = self._member(name, number, site, Phase.UNSEAL)
        return [study.posts[number, "answer", s] for s in study.state.plan if s in study.state.answers]

    def _member(self, name: str, number: int, site: str, first: Phase) -> Stored:
        study = self.studies[name]
        self._of_this_round(study, number)
        phases = list(Phase)
        if phases.index(study.state.phase) < phases.index(first) or site not in study.state.plan:
            raise ProtocolError("too early, or no member")
        return study

    def sum(self, name: str, number: int) -> int:
        study, state = self.studies[name], self.studies[name].state
        if not (number < state.round or (number == state.round and state.phase in CLOSED)):
            raise ProtocolError("not closed")
        if number not in study.sums or number < state.round - 1:
            raise NotFoundError("the sum is not there any more")
        return study.sums[number]

    def reports(self, name: str, number: int) -> list[Record]:
        posts = self.studies[name].posts
        return [record for (n, kind, _), record in posts.items() if (n, kind) == (number, "report")]

    def add_version(self, name: str, rules: StudyRules) -> None:
        """A newer version of the manifest."""
        study = self.studies[name]
        if study.state.running and study.state.round < rules.versions[-1].first_round:
            before, study.rules = study.rules, rules
            try:
                self.apply(name, events.VersionAdded())
            except Died:
                if self.dies == "before":
                    study.rules = before
                raise
