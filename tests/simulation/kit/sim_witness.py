"""Sees what is sent, answered, stored and signed in a simulated world, and what must hold of it. Every ``assert``
here is an invariant; contributions are distinct powers of 4, so that in a sum's base-4 digits a double count shows as
a 2 and an update that does not belong as a digit that must not be there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sim_records import Abort, Close, chained, digest, model_of, value_of
from sim_stored import PIECES, Stored

from cipherward.coordinator.rounds.state import Phase
from cipherward.crypto.manifest_rules import effective_threshold

if TYPE_CHECKING:
    from sim_world import World

ONCE = ("commit", "acknowledgement", "answer")
"""Of these a site makes one for a round of a study, ever."""
PATTERNS = (
    ["round"],
    ["round", "plan"],
    ["round", "close"],  # aborted before its plan
    ["round", "plan", "close"],
)


class Witness:
    """One world's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reached: Counter[str] = Counter()
        self._sent: dict[tuple[str, int, str, str], list[Any]] = {}
        self._facts: dict[tuple[str, int, str, str], Any] = {}
        self._keys: set[tuple[str, int, str]] = set()
        self._stored: dict[tuple[str, int, str], tuple[int, int]] = {}
        self._encrypted: dict[tuple[str, int, str, int], bytes] = {}
        self._promised: dict[tuple[str, str, int, str], Any] = {}
        self._signed: dict[tuple[str, int, str], Any] = {}
        self._sums: dict[tuple[str, int], int] = {}
        self._left_out: set[tuple[str, int, str]] = set()

    # What happens

    def sent(self, kind: str, record: Any) -> None:
        """An honest site says this."""
        said = self._sent.setdefault((record.study, record.round, record.site, kind), [])
        if record not in said:
            said.append(record)
        assert len(said) == 1 or kind not in ONCE, f"{record.site} made two {kind} records in a round"

    def replied(self, kind: str, record: Any) -> None:
        """The coordinator told whoever posted this that it has it."""
        known = self._facts.get((record.study, record.round, record.site, kind))
        assert known in (None, record) or kind not in ONCE, f"two different {kind} records were taken"
        self._facts[record.study, record.round, record.site, kind] = record
        self.reached[f"{kind} answered"] += 1

    def key_stored(self, study: str, version: int, receiver: str) -> None:
        self._keys.add((study, version, receiver))

    def stored(self, study: str, number: int, site: str, attempt: int, pieces: int) -> None:
        self._stored[study, number, site] = (attempt, pieces)

    def encrypted(self, where: tuple[str, int, str, int], root: bytes) -> None:
        assert where not in self._encrypted, f"{where} encrypted twice under one attempt's key"
        self._encrypted[where] = root

    def opened(self, study: str, number: int, site: str, closed: Close) -> None:
        """A site applied the sum of that close record."""
        assert digest(closed) == self.world.coordinator.studies[study].digest_of(number, "close")
        self.reached["opened"] += 1

    # What must hold

    def check(self) -> None:
        """After a restart of the coordinator, and at the end."""
        for name, study in self.world.coordinator.studies.items():
            self._check_chain(name, study)
            self._check_model(name, study)
        for key, record in self._facts.items():
            self._check_fact(*key, record)
        for name, version, receiver in self._keys:
            study = self.world.coordinator.studies[name]
            assert (version, receiver) in study.state.keys, "a stored key was forgotten"
            assert (version, receiver) in study.keys
        for (name, number, site), (attempt, pieces) in self._stored.items():
            self._check_upload(name, number, site, attempt, pieces)
        for participant in self.world.participants.values():
            self._check_site(participant)

    def signed(self, name: str, study: Stored, number: int, kind: str, record: Any) -> None:
        """The coordinator signed this: in the transaction that stores it."""
        self._signed[name, number, kind] = record
        kinds = [k for n, k in study.records if n == number]
        assert kinds in PATTERNS, f"round {number} of {name} has the records {kinds}"
        self.reached[type(record).__name__] += 1
        if kind == "plan":
            assert len(record.sites) >= study.rules.at(number).minimum_cohort, (
                "a plan below the minimum cohort"
            )
            assert len({join.key for join in record.joins}) == (len(record.joins) if study.quorum else 1)
        if isinstance(record, Close):
            self._check_close(name, study, number, record)

    def _check_close(self, name: str, study: Stored, number: int, closed: Close) -> None:
        rule, plan = study.rules.at(number), study.records[number, "plan"]
        assert closed.plan == digest(plan) and set(closed.sites) <= set(plan.sites)
        assert len(set(closed.sites)) == len(closed.sites) >= rule.minimum_cohort, (
            "U is too small, or doubled"
        )
        for commit in closed.contributions:
            assert commit == study.posts[number, "commit", commit.site], "U lists what was not committed"
            assert self._weight(commit) == self.world.weight(name, number, commit.site), (
                "another round's update"
            )
        exact = sum(self.world.weight(name, number, site) for site in closed.sites)
        assert value_of(closed.root) == exact, "the sum is not exactly that of the committed updates of U"
        self._sums[name, number] = exact
        said = [study.posts.get((number, "acknowledgement", site)) for site in plan.sites]
        complaints = [{dealer for dealer, _ in one.unopenable} for one in said if one]
        for site in plan.sites:
            if (number, "commit", site) in study.posts and site not in closed.sites:
                assert any(site in bad for bad in complaints), "a commit that was taken is left out of U"
                self._left_out.add((name, number, site))
        if study.quorum:
            needed = effective_threshold(rule.threshold, len(plan.sites))
            able = [bad for bad in complaints if not bad.intersection(closed.sites)]
            assert len(able) >= needed, "U cannot be opened by enough members"

    def _weight(self, commit: Any) -> int:
        return self.world.weights[commit.root]

    def _check_chain(self, name: str, study: Stored) -> None:
        """Records are numbered without a gap, chained, and what they ever were."""
        transcript, last, state = self.world.first[name], 0, study.state
        for (number, kind), record in study.records.items():
            assert record == self._signed[name, number, kind], f"a {kind} record of a round has changed"
            assert record.round == number in (last, last + 1), "a round's number was skipped"
            last = number
            if kind != "plan":
                assert record.previous == transcript, f"a {kind} record does not continue the transcript"
            if isinstance(record, Close | Abort):
                transcript = chained(transcript, record)
        assert study.transcript == transcript
        for number, kind, site in study.posts:
            closed = study.records.get((number, "close"))
            if kind == "commit" and isinstance(closed, Close) and site not in closed.sites:
                assert (name, number, site) in self._left_out, "a commit was taken after the close"
        assert sum((name, n, "close") in self._signed for n in range(1, last + 1)) == sum(
            kind == "close" for _, kind in study.records
        )
        for number, total in study.sums.items():
            assert self._sums.get((name, number), total) == total, "the sum of a closed round has changed"
        closed = study.records.get((state.round, "close"))
        if isinstance(closed, Close) and state.running:
            assert state.contributors == closed.sites, "U has changed after its close record"

    def _check_model(self, name: str, study: Stored) -> None:
        """The model is the sum of whole rounds, each once: of the false sites' votes alone nothing comes of it."""
        value, left = value_of(study.state.model), dict(self._sums)
        for (study_name, number), total in left.items():
            if study_name == name and number not in study.unopened and total and value & total == total:
                value -= total
        assert value == 0, "an update was counted twice, or outside of U"

    def _check_fact(self, name: str, number: int, site: str, kind: str, record: Any) -> None:
        study = self.world.coordinator.studies[name]
        state, post = study.state, study.posts.get((number, kind, site))
        now = state.running and state.round == number
        match kind:
            case "join":  # a site that restarted made another one, which may overtake it
                assert post is not None, "a join was forgotten"
                assert not now or site in state.joins, "a join was forgotten"
            case "commit":
                assert post == record, "an acknowledged commit was forgotten"
                known = state.commits.get(site)
                assert not now or (known and known.record == digest(record)), "a commit was forgotten"
            case "acknowledgement" if now:
                bad = frozenset(dealer for dealer, _ in record.unopenable)
                assert post == record and state.acknowledgements.get(site) == bad, "a complaint was forgotten"
            case "answer" if now:
                assert post == record and state.answers.get(site) == digest(record), "an answer was forgotten"
            case "report":
                assert post is not None, "a model report was forgotten"
                forgotten = now and state.phase is Phase.RELEASE and state.reports.get(site) != post.model
                assert not forgotten, "a model report was forgotten by the state"

    def _check_upload(self, name: str, number: int, site: str, attempt: int, pieces: int) -> None:
        study = self.world.coordinator.studies[name]
        state = study.state
        if state.running and state.round == number and site not in self.world.false:
            newest = max((a for n, s, a in study.pieces if (n, s) == (number, site)), default=0)
            assert newest >= attempt, "stored chunks were forgotten"
            if newest == attempt:
                assert pieces <= len(study.pieces[number, site, attempt]) <= PIECES + study.quorum

    def _check_site(self, one: Any) -> None:
        """What a site wrote down it never takes back; it follows the one history there is."""
        study = self.world.coordinator.studies[one.study]
        for number in range(1, study.state.round + 1):
            entry = one.journal.entry(number)
            for column in (
                "plan_record",
                "answered_close",
                "commit_record",
                "closing_record",
                "acknowledgement",
            ):
                value = getattr(entry, column)
                known = self._promised.setdefault((one.study, one.site, number, column), value)
                if known is None:
                    self._promised[one.study, one.site, number, column] = value
                else:
                    assert known == value, f"{one.site} changed its {column} of round {number}"
            if entry.closing_record is not None:
                assert entry.closing_record == study.records[number, "close"], "two histories"
            if entry.plan_record is not None:
                assert entry.plan_record == study.records[number, "plan"], "two plans"
        if one.site not in self.world.false:
            applied = sum(
                total
                for (name, number), total in self._sums.items()
                if name == one.study and value_of(one.row.model) & total == total
            )
            assert model_of(applied) == one.row.model, "a site's model is not a sum of whole rounds"
