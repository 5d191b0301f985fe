"""``study.toml``: what a study's organisers decide, as they write it. A commented one is in examples/heart.

Only types and spelling are checked here; whether the numbers make sense together is for ``manifest_rules``
to say, since sites check the same again.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cipherward.durable import read_file
from cipherward.errors import UsageError
from cipherward.settings_text import MAX_BYTES, parse_toml


class _Section(BaseModel):
    # No infinities or NaN, no unknown keys: a misspelt privacy constant must not fall back to a default.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StudySection(_Section):
    """What it is called, how long it runs, who coordinates, and who gets the model."""

    name: str
    rounds: int
    coordinator: str
    strategy: str = "fedavg"
    server_learning_rate: float | None = None
    """None: the strategy's own default (crypto/strategies.py)."""
    release_to: str = "sites"
    first_round: int = 1
    """From version 2 on: the first round in which that version is in force."""


class StrategySection(_Section):
    """Constants of the strategies that have them. None: the strategy's own default."""

    proximal: float | None = None
    """fedprox: mu."""
    beta1: float | None = None
    beta2: float | None = None
    tau: float | None = None
    """fedadam, fedyogi."""
    noise_range: float | None = None
    """dp-fedsgd: standard deviations of a site's noise that fit into an upload."""


class TaskSection(_Section):
    """The installed task plug-in, pinned by the digest of its code."""

    name: str
    code_digest: str = Field(default="", pattern=r"^(?:[0-9a-f]{64})?$")
    """Hexadecimal; empty: that of the task as installed on the machine that signs."""


class TrainingSection(_Section):
    """Constants of a round's training, the same with and without differential privacy."""

    sampling_rate: float
    steps: int
    learning_rate: float
    batch_divisor: float
    dp_disabled: bool = False


class MetricsSection(_Section):
    """How loss, correct and n are reported."""

    loss_bound: float
    scale: float


class DpMetricsSection(_Section):
    """Noise on the metrics."""

    noise_multiplier: float


class DpSection(_Section):
    """Differential privacy, per patient."""

    clipping_norm: float
    noise_multiplier: float
    delta: float
    metrics: DpMetricsSection


class SuiteSection(_Section):
    """How updates are encrypted."""

    name: str = "quorum"
    parameters: str = ""
    """A named set; empty: the suite's first, or for dp-fedsgd q16."""
    bound: float | None = None
    """None: 64, or for dp-fedsgd 1."""
    key_maker: str = ""
    """Only where one key serves the whole study."""


class CohortSection(_Section):
    """Who takes part, and how many must."""

    sites: tuple[str, ...] = ()
    """Empty: every approved site."""
    minimum: int = 0
    """k. 0: where keys are shared, the least that is safe for threshold and colluders."""
    threshold: int = 0
    """0: where keys are shared, the least that is safe for the roster."""
    colluders: int | None = None
    """None: where keys are shared, as many as the threshold withstands."""
    collective_verification: bool | None = None
    """None: on where the suite has it."""


class DeadlinesSection(_Section):
    """Seconds."""

    join_window: int = 3600
    upload: int = 1800
    acknowledge: int = 300
    unseal: int = 300
    verify: int = 900


class SiteSection(_Section):
    """One site's own constants."""

    name: str
    weight: float = 1.0
    batch_divisor: float | None = None


class StudyFile(_Section):
    """The whole file."""

    study: StudySection
    strategy: StrategySection = StrategySection()
    task: TaskSection
    training: TrainingSection
    metrics: MetricsSection
    dp: DpSection | None = None
    suite: SuiteSection = SuiteSection()
    cohort: CohortSection
    deadlines: DeadlinesSection = DeadlinesSection()
    sites: tuple[SiteSection, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str = "study.toml") -> StudyFile:
        """From TOML; raises UsageError that names the first wrong line or key."""
        try:
            return cls.model_validate(parse_toml(text.encode(), where))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            why = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}.get(
                first["type"], first["msg"]
            )
            raise UsageError(
                f"{where} has a wrong setting {key}", why=why, fix="Compare with examples/heart/study.toml"
            ) from error

    @classmethod
    def load(cls, path: Path) -> StudyFile:
        """From a file; raises UsageError or EnvironmentProblem."""
        try:
            text = read_file(path, limit=MAX_BYTES).decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not valid TOML", why="it is not UTF-8") from error
        return cls.parse(text, str(path))
