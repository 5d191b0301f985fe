"""Two studies at once on one coordinator, five sites in both, one clock, and a network that loses, delays, repeats and
reorders messages and cuts uploads off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sim_site
import sim_stored
from sim_coordinator import Coordinator
from sim_records import Acknowledgement, Close, Commit, Join, Report, digest
from sim_site import Participant
from sim_witness import Witness

from cipherward.clock import ManualClock
from cipherward.coordinator.rounds import events
from cipherward.coordinator.rounds.state import Life, Rules, StudyRules
from cipherward.crypto.manifest_rules import least_cohort, least_threshold
from cipherward.errors import CipherwardError, UnavailableError

SITES = ("a", "b", "c", "d", "e")
STUDIES = ("x", "y")
ROUNDS = 3
JUMPS = (-86_400.0, 3_600.0, -5.0, 1e9, -1e9)
SECONDS = (1.0, 3.5, 11.0, 31.0, 130.0)


def _version(number: int, first_round: int, sites: tuple[str, ...], *, quorum: bool) -> Rules:
    """The least numbers that a manifest may have; one colluder."""
    t, c = (least_threshold(len(sites)), 1) if quorum else (0, 0)
    k = least_cohort(t, c) if quorum else 3
    return Rules(number, first_round, ROUNDS, sites, quorum, k, t, c, 60, 30, 10, 10, 20)


def rules_of(*, quorum: bool) -> StudyRules:
    """Five sites."""
    return StudyRules((_version(1, 1, SITES, quorum=quorum),))


def second_version(rules: StudyRules) -> StudyRules:
    """From round 2 on, four sites."""
    return StudyRules((*rules.versions, _version(2, 2, SITES[:4], quorum=rules.versions[0].quorum)))


POST_FAULTS = ("post lost", "post late", "post twice", "post reply lost", "post before", "post after")


class Network:
    """Calls of sites. A fault strikes the call, the post or the step of a site with which its count is up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.kind, self.left = "", 0
        self.late: list[Callable[[], Any]] = []

    def arm(self, kind: str, at: int) -> None:
        """The next operation meets that fault at its call, or step, number ``at``."""
        self.kind, self.left = kind, at + 1

    def _due(self, *kinds: str) -> str:
        if self.kind not in kinds:
            return ""
        self.left -= 1
        if self.left:
            return ""
        due, self.kind = self.kind, ""
        return due

    def step(self, site: str) -> None:
        """A point at which a site can die."""
        if self._due("site dies"):
            self._world.witness.reached["site died"] += 1
            raise sim_site.Died(site)

    def cuts(self, pieces: int) -> int:
        """After how many pieces this upload is cut off; 0: not."""
        if pieces > 1 and self._due("cut"):
            self._world.witness.reached["cut"] += 1
            return 1
        return 0

    def call(self, site: str, message: Callable[[], Any], *, is_post: bool = False) -> Any:
        """Handled now, later, twice or never; raises what the coordinator answers, or UnavailableError."""
        self.step(site)
        fault = self._due("lost", "late", "twice", "reply lost", "before", "after")
        if is_post and not fault:
            fault = self._due(*POST_FAULTS).removeprefix("post ")
        if fault in ("late", "twice"):
            self.late.append(message)
        if fault in ("lost", "late"):
            raise UnavailableError("no answer")
        reply = self.handle(message, fault)
        if fault == "reply lost":
            raise UnavailableError("no answer")
        self.step(site)
        return reply

    def handle(self, message: Callable[[], Any], fault: str) -> Any:
        """At the coordinator, which may die before or after its transaction."""
        coordinator = self._world.coordinator
        coordinator.dies = fault if fault in ("before", "after") else None
        try:
            reply = message()
            if coordinator.dies:  # there was nothing to write
                raise sim_stored.Died
        except sim_stored.Died:
            self._world.restart_coordinator(reboot=bool(len(self.late) % 2))
            raise UnavailableError("the connection broke") from None
        finally:
            coordinator.dies = None
        return reply


class World:
    """Everything of one history. ``quorum``: whether the first study has that suite, and whether the second."""

    def __init__(self, *quorum: bool) -> None:
        self.clock, self.network = ManualClock(), Network(self)
        self.weights: dict[bytes, int] = {}
        self.spoilt: set[tuple[str, int, str, str]] = set()
        self.false: set[str] = set()
        """Sites whose key somebody else uses too."""
        self._fresh = 0
        self.witness = Witness(self)
        self.coordinator = Coordinator(self.clock, self.weights.__getitem__, self.witness.signed)
        self.first = {name: digest(name) for name in STUDIES}
        self.participants: dict[tuple[str, str], Participant] = {}
        for name, suite in zip(STUDIES, quorum, strict=True):
            self.coordinator.create(name, rules_of(quorum=suite), self.first[name])
            for site in SITES:
                self.participants[site, name] = Participant(self, site, name, self.first[name])

    # What sites and tests make

    def fresh_number(self) -> int:
        """Like no other."""
        self._fresh += 1
        return self._fresh

    def fresh(self) -> bytes:
        """A key like no other."""
        return b"k%d" % self.fresh_number()

    def weight(self, study: str, number: int, site: str) -> int:
        """The update of that site in that round."""
        place = (STUDIES.index(study) * ROUNDS + number - 1) * len(SITES) + SITES.index(site)
        return int(4**place)

    def encrypted(self, value: int, where: tuple[str, int, str, int]) -> bytes:
        """The root of a new ciphertext of ``value``."""
        root = digest((where, self.fresh()))
        self.witness.encrypted(where, root)
        self.weights[root] = value
        return root

    def is_spoilt(self, study: str, number: int, dealer: str, receiver: str) -> bool:
        """Whether that share does not open."""
        return (study, number, dealer, receiver) in self.spoilt

    # What happens

    def restart_coordinator(self, *, reboot: bool) -> None:
        self.coordinator.restart(reboot=reboot)
        self.witness.reached["coordinator restarted"] += 1
        self.witness.check()

    def restart_site(self, site: str) -> None:
        for name in STUDIES:
            self.participants[site, name].restart()

    def act(self, site: str, study: str, *, stale: bool = False) -> None:
        """One turn of a site's loop; what it is refused, or cannot reach, it tries again at its next."""
        try:
            self.participants[site, study].act(stale=stale)
        except sim_site.Died:
            self.restart_site(site)
        except CipherwardError as error:
            self.witness.reached[type(error).__name__] += 1

    def straggle(self, site: str, study: str) -> None:
        """A site does everything in time, but the last thing it says arrives when the deadline is over."""
        for other in SITES:
            if other != site:
                self.act(other, study)
        self.network.arm("post late", 0)
        before = len(self.network.late)
        self.act(site, study)
        self.tick(31.0)
        if len(self.network.late) > before:
            self.late(-1, again=False)

    def sum(self, study: str) -> None:
        """The sum that is being made is done."""
        if study in self.coordinator.sums:
            fault = self.network._due("before", "after")
            self._deliver(lambda: self.coordinator.make_sum(study), fault)

    def sum_again(self, study: str) -> None:
        """The outcome of the newest sum is told once more: it was run twice, or comes very late."""
        stored = self.coordinator.studies[study]
        closed = [record for record in stored.records.values() if isinstance(record, Close)]
        if closed:
            summed = events.Summed(closed[-1].round, closed[-1].root, sim_stored.PIECES)
            self._deliver(lambda: self.coordinator.apply(study, summed), "")

    def sum_fails(self, study: str) -> None:
        """The sum that is being made cannot be made."""
        if study in self.coordinator.sums:
            failed = events.SumFailed(self.coordinator.sums.pop(study).round, "a disk")
            fault = self.network._due("before", "after")
            self._deliver(lambda: self.coordinator.apply(study, failed), fault)

    def _deliver(self, message: Callable[[], Any], fault: str) -> Any:
        try:
            return self.network.handle(message, fault)
        except CipherwardError:
            return None

    def late(self, index: int, *, again: bool) -> None:
        """A message that was delayed or repeated on its way arrives, and may do so once more."""
        late = self.network.late
        if late:
            message = late[index % len(late)] if again else late.pop(index % len(late))
            self.witness.reached["late"] += 1
            self._deliver(message, self.network._due("before", "after"))

    def tick(self, seconds: float) -> None:
        """Time passes, and the coordinator looks at its deadlines."""
        self.clock.advance(seconds)
        self._deliver(self.coordinator.tick, self.network._due("before", "after"))

    def jump(self, seconds: float) -> None:
        """The wall clock is set: no deadline moves."""
        before = {name: study.state for name, study in self.coordinator.studies.items()}
        self.clock.jump(seconds)
        self.coordinator.tick()
        left = self.coordinator.studies.items()
        assert all(study.state is before[name] for name, study in left), "a deadline follows the wall clock"

    def forge(self, site: str, name: str, what: int) -> None:
        """Somebody else uses the site's key, or the site runs twice: another record than the agent's."""
        study = self.coordinator.studies[name]
        number, plan = study.state.round, study.digest_of(study.state.round, "plan")
        if self.false - {site}:
            return  # more than one false site is more than the study withstands
        self.false.add(site)
        kind, record = "", Any
        match what:
            case 0:
                kind = "join"
                key = self.fresh() if study.quorum else b"other"
                record = Join(name, number, site, study.digest_of(number, "round"), key)
            case 1:
                kind, record = "commit", Commit(name, number, site, plan, 9, self.fresh())
            case 2:  # a second, complete upload
                root = self.encrypted(self.weight(name, number, site), (name, number, site, 9 + self._fresh))
                pieces = [(root, index) for index in range(sim_stored.PIECES + study.quorum)]
                attempt = 9 + self._fresh
                upload = lambda: self.coordinator.upload(name, number, site, attempt, plan, pieces)  # noqa: E731
                self._deliver(upload, "")
                kind, record = "commit", Commit(name, number, site, plan, attempt, root)
            case 3:
                kind = "acknowledgement"
                commits = tuple((s, c.attempt) for s, c in study.state.commits.items())
                record = Acknowledgement(name, number, site, plan, commits[1:], commits[:1])
            case _:
                kind = "report"
                record = Report(name, number, site, study.digest_of(number, "close"), b"wrong")
        handler = getattr(self.coordinator, kind)

        def post() -> None:
            handler(record)
            self.witness.replied(kind, record)

        self._deliver(post, self.network._due("before", "after"))

    def revoke(self, site: str) -> None:
        """The consortium revokes a site's credentials."""
        event = events.SitesRevoked(frozenset({site}))
        for name in STUDIES:
            self._deliver(lambda name=name: self.coordinator.apply(name, event), "")

    def abort(self, name: str) -> None:
        """An operator ends a study."""
        event = events.StudyAborted("an operator's order")
        self._deliver(lambda: self.coordinator.apply(name, event), self.network._due("before", "after"))

    def add_version(self, name: str) -> None:
        """Version 2 of the manifest, in force from round 2."""
        study = self.coordinator.studies[name]
        if len(study.rules.versions) == 1:
            rules = second_version(study.rules)
            fault = self.network._due("before", "after")
            self._deliver(lambda: self.coordinator.add_version(name, rules), fault)

    def lives(self) -> list[Life]:
        return [study.state.life for study in self.coordinator.studies.values()]
