"""Where things lie in a site's folder. The member's keys and certificates are beside these
(``crypto.pki``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cipherward.database import file_url
from cipherward.durable import explained

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """Paths below a site's folder. Everything made here is for the owner alone (0700, 0600)."""

    root: Path

    @property
    def database(self) -> Path:
        """Journal, ledger and study state."""
        return self.root / "state.db"

    @property
    def database_url(self) -> str:
        """As SQLAlchemy takes it."""
        return file_url(self.database)

    @property
    def policy(self) -> Path:
        """The hospital's own rules."""
        return self.root / "policy.toml"

    @property
    def patient_key(self) -> Path:
        """What the ledger's patient digests are keyed by; secret."""
        return self.root / "patient.key"

    @property
    def models(self) -> Path:
        """Models by digest."""
        return self.root / "models"

    @property
    def shared_keys(self) -> Path:
        """Shared keys by manifest digest; secret."""
        return self.root / "shared-keys"

    @property
    def trainer_socket(self) -> Path:
        """Where the trainer server listens by default."""
        return self.root / "trainer.sock"

    def outbox(self, study: str, round_number: int) -> Path:
        """The journalled update and encrypted chunks of one round; secret."""
        return self.root / "outbox" / study / str(round_number)

    def ended_outboxes(self, study: str, last_ended: int) -> list[Path]:
        """What is still there of rounds up to ``last_ended``, oldest first."""
        rounds = (self.root / "outbox" / study).glob("*")
        numbers = sorted(int(path.name) for path in rounds if path.name.isdecimal())
        return [self.outbox(study, number) for number in numbers if number <= last_ended]

    def prepare(self) -> None:
        """Make the folders; raises EnvironmentProblem."""
        for path in (self.models, self.shared_keys, self.root / "outbox"):
            private_folder(path)


def private_folder(path: Path) -> None:
    """Make ``path`` and its parents, readable by the owner only; raises EnvironmentProblem."""
    with explained("make the folder", path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
