"""A study as the service sees it at one moment. Immutable: whoever holds a view may read it at leisure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cipherward.coordinator.rounds.state import Rules, State, StudyRules
from cipherward.crypto.records import Plan, StudyTrust
from cipherward.crypto.suites.base import KeyLifetime, SuiteParams
from cipherward.crypto.suites.payload import upload_sizes
from cipherward.errors import IdentityError
from cipherward.ids import Digest
from cipherward.proto.v1.common_pb2 import Signed


@dataclass(frozen=True)
class Version:
    """One version of the manifest, verified, and the sizes that follow from it."""

    signed: Signed
    trust: StudyTrust
    params: SuiteParams
    length: int
    """Values in an update: parameters, metrics, check constant."""

    @property
    def number(self) -> int:
        """1, 2, ..."""
        return self.trust.manifest.version

    @cached_property
    def chunk_sizes(self) -> Sequence[int]:
        """Bytes of each chunk of an update."""
        return upload_sizes(self.params, self.length)

    def rules(self) -> Rules:
        """What the state machine needs of it."""
        manifest = self.trust.manifest
        limits = manifest.deadlines
        return Rules(
            version=manifest.version,
            first_round=manifest.first_round,
            rounds=manifest.rounds,
            roster=tuple(self.trust.sites),
            quorum=self.trust.key_lifetime is KeyLifetime.ATTEMPT,
            minimum_cohort=manifest.minimum_cohort,
            threshold=manifest.threshold,
            colluders=manifest.colluders,
            join_window=limits.join_window,
            upload=limits.upload,
            acknowledge=limits.acknowledge,
            unseal=limits.unseal,
            verify=limits.verify,
        )


@dataclass(frozen=True)
class StudyView:
    """State, manifests, and the records of the current round."""

    name: str
    state: State
    versions: Sequence[Version]
    rules: StudyRules
    transcript: bytes
    weights: str
    round_record: Digest | None = None
    plan: Plan | None = None
    close: Digest | None = None
    model_wanted_by: tuple[str, ...] = ()

    def version(self, round_number: int) -> Version:
        """The version in force in that round."""
        number = self.rules.at(round_number).version
        return next(version for version in self.versions if version.number == number)

    @property
    def current(self) -> Version:
        """The version in force now."""
        return self.version(self.state.round)

    def names(self, site: str) -> bool:
        """Whether the version in force, or a later one, has the site on its roster."""
        return any(
            site in version.trust.sites for version in self.versions if version.number >= self.current.number
        )

    def require_site(self, site: str, tls_key_digest: bytes) -> None:
        """Raises IdentityError unless the roster has the site, with the TLS key that it dialled with."""
        entries = [
            version.trust.sites[site]
            for version in self.versions
            if version.number >= self.current.number and site in version.trust.sites
        ]
        if not entries:
            self.current.trust.site(site)  # says so
        if all(entry.tls_key_digest != tls_key_digest for entry in entries):
            raise IdentityError(
                f"{site} dialled with another TLS key than the manifest of {self.name} names",
                why="its keys were made anew after the manifest was signed",
                fix="Have the consortium sign a new version of the manifest with the new keys",
            )


# Names of chunk sets


def update_set(study: str, round_number: int, site: str, attempt: int) -> str:
    """Of an update."""
    return f"{update_prefix(study, round_number)}{site}/{attempt}"


def update_prefix(study: str, round_number: int) -> str:
    """What the names of all updates of a round begin with."""
    return f"{study}/{round_number}/update/"


def share_set(study: str, round_number: int, site: str, attempt: int) -> str:
    """Quorum: of the sealed shares that go with an update, one for each member of J."""
    return f"{share_prefix(study, round_number)}{site}/{attempt}"


def share_prefix(study: str, round_number: int) -> str:
    """What the names of all sets of shares of a round begin with."""
    return f"{study}/{round_number}/shares/"


def answer_set(study: str, round_number: int, site: str) -> str:
    """Quorum: of the sealed keys of a site's answer, one for each member of J."""
    return f"{answer_prefix(study, round_number)}{site}"


def answer_prefix(study: str, round_number: int) -> str:
    """What the names of all answers' sets of a round begin with."""
    return f"{study}/{round_number}/answers/"


def sum_set(study: str, round_number: int) -> str:
    """Of a round's sum."""
    return f"{study}/{round_number}/sum"


def round_of_set(name: str) -> int:
    """The round that a chunk set is of; 0 for those that outlive rounds: initial weights, relayed bodies."""
    number = name.split("/")[1]
    return int(number) if number.isdecimal() else 0
