"""Which model a site keeps, asks for and serves, as ``standing`` and ``resync`` of the agent: that of the newest
closed round which was not given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim_records import digest, model_of

from cipherward.coordinator.rounds.state import Life
from cipherward.crypto.records import agreement_needed
from cipherward.errors import LateError, UnavailableError

if TYPE_CHECKING:
    from sim_world import World

INITIAL = model_of(0)


class Resync:
    """The part of a ``Participant`` that has the right model. ``models`` are the files on its disk."""

    world: World
    site: str
    study: str
    quorum: bool
    journal: Any
    row: Any
    models: set[bytes]
    rules: Callable[[int], Any]
    _call: Callable[..., Any]
    _durable: Callable[..., Any]
    _opening: Callable[..., Any]

    # standing

    def _standing(self, current: int, *, ended: bool) -> Any:
        for entry in reversed(self.journal.history()):
            if entry.closing_record and not entry.aborted and self._stands(entry, current, ended=ended):
                return entry
        return None

    def _stands(self, entry: Any, current: int, *, ended: bool) -> bool:
        if not self.quorum:
            return True
        if entry.round < current:
            return bool(self._opening(entry.round + 1).model != self._opening(entry.round).model)
        if not ended:
            return True
        most = max(Counter(self._votes(entry).values()).values(), default=0)
        needed = agreement_needed(self.rules(entry.round).colluders, len(entry.cohort))
        return most >= min(needed, len(entry.cohort))

    def _votes(self, entry: Any) -> dict[str, bytes]:
        close = digest(entry.closing_record)
        reports = self._call(lambda: self.world.coordinator.reports(self.study, entry.round))
        return {one.site: one.model for one in reports if one.site in entry.cohort and one.close == close}

    def _go_back(self, standing: Any) -> bool:
        if standing is None:
            before, number = INITIAL, 0
            self.models.add(INITIAL)  # the coordinator has it
        else:
            before, number = self._opening(standing.round + 1).model, standing.round
            if before not in self.models:
                return False
        self._set_model(number, before)
        self.world.witness.reached["went back"] += 1
        return True

    def _set_model(self, number: int, model: bytes) -> None:
        def write() -> None:
            self.row.model, self.row.model_round = model, number

        self._durable(write)

    # resync

    def _agreed(self, last: Any) -> tuple[bytes | None, int]:
        votes = self._votes(last)
        votes.pop(self.site, None)
        if not votes:
            return None, 0
        model, count = Counter(votes.values()).most_common(1)[0]
        others = set(last.cohort) - {self.site}
        enough = count >= agreement_needed(self.rules(last.round).colluders, len(others))
        return (model, count) if enough else (None, 0)

    def _ensure_model(self, current: int, *, ended: bool = False) -> None:
        last, row = self._standing(current, ended=ended), self.row
        if last is None:
            if row.model_round:
                self._go_back(None)
            return
        agreed, count = self._agreed(last)
        if row.model_round == last.round and agreed in (None, row.model):
            return
        if row.model_round > last.round and self._go_back(last):
            return
        if agreed is None:
            raise UnavailableError("the other sites have not agreed yet")
        if row.model_round == last.round and count < 2:
            raise UnavailableError("the model is in dispute")
        self._call(lambda: self.world.coordinator.request_model(self.study, self.site))
        relayed = self.world.coordinator.studies[self.study].models
        item = self._call(lambda: relayed.get(self.site))
        if item is None or item != (last.round, agreed, last.transcript):
            raise UnavailableError("no site has sent the model yet")
        self._durable(lambda: self.models.add(agreed))
        self._set_model(last.round, agreed)
        self.world.witness.reached["took over"] += 1

    def _serve_models(self, snapshot: dict[str, Any]) -> None:
        if not snapshot["models"]:
            return
        ended = snapshot["life"] is not Life.RUNNING
        last = self._standing(snapshot["round"], ended=ended)
        if last is None or self.row.model_round != last.round:
            return
        item = (last.round, self.row.model, last.transcript)
        for receiver in snapshot["models"]:
            if receiver != self.site:
                try:
                    self._call(lambda r=receiver: self.world.coordinator.put_model(self.study, r, item))
                except LateError:
                    continue
