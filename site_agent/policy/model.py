"""policy.toml: what it may say, and reading it. An unknown or misspelt key is an error, never ignored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from cipherward.crypto.strategies import SHARED_NOISE, STRATEGIES
from cipherward.crypto.suites.registry import PACKAGES
from cipherward.durable import read_file
from cipherward.errors import FormatError, PolicyError, UsageError
from cipherward.ids import check_name
from cipherward.settings_text import MAX_BYTES, parse_toml
from cipherward.site_agent.ledger.accounting import MIN_DELTA

INSTALLED = "installed"
LOCAL_NOISE = frozenset(STRATEGIES) - {SHARED_NOISE}
"""Strategies in which a site's own noise alone carries the guarantee, whoever opens its update."""


def _name(value: str) -> str:
    try:
        return check_name(value, "this")
    except FormatError as error:
        raise ValueError(f"{error.what}, {error.fix.lower()}") from None


def _suite(value: str) -> str:
    if value not in PACKAGES:
        raise ValueError(f"there is no suite {value!r}, only {', '.join(sorted(PACKAGES))}")
    return value


def _strategy(value: str) -> str:
    if value not in STRATEGIES:
        raise ValueError(f"there is no strategy {value!r}, only {', '.join(sorted(STRATEGIES))}")
    return value


Suite = Annotated[StrictStr, AfterValidator(_suite)]
Strategy = Annotated[StrictStr, AfterValidator(_strategy)]
Name = Annotated[StrictStr, AfterValidator(_name)]
TaskPin = Annotated[StrictStr, Field(pattern=r"^(installed|[0-9a-f]{64})$")]


class DataSetPolicy(BaseModel):
    """One ``[datasets.NAME]`` table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[StrictStr, Field(min_length=1)]
    """What the task loads: a path or URL, as the task understands it."""
    task: Name | None = None
    """If set, only this task may train on it."""
    epsilon_ceiling: Annotated[float, Field(gt=0, strict=True)]
    """Over the data set's whole life, at ``delta``. ``inf`` only where DP is not required."""
    delta: Annotated[float, Field(ge=MIN_DELTA, le=0.1, strict=True)]
    """Must be below 1/(10 x patients), which is checked against the registered patients."""
    max_lost_reservations: Annotated[StrictInt, Field(ge=1)] = 5
    """How many rounds may be paid for and then aborted before the data set is used no more."""


class Policy(BaseModel):
    """The hospital's policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum_cohort: Annotated[StrictInt, Field(ge=2)]
    """Sites whose updates must be in every sum, ours included."""
    minimum_threshold: Annotated[StrictInt, Field(ge=2)]
    """Sites that must act together to open a sum, in the quorum suite."""
    require_dp: StrictBool
    allowed_suites: Annotated[frozenset[Suite], Field(min_length=1)]
    allowed_strategies: Annotated[frozenset[Strategy], Field(min_length=1)] = LOCAL_NOISE
    """How updates are made and noised. SHARED_NOISE must be named: its guarantee rests on other sites too."""
    allowed_tasks: dict[Name, TaskPin]
    """Each task's code digest, or ``installed`` for whatever version is installed here."""
    datasets: dict[Name, DataSetPolicy] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ceilings_mean_something(self) -> Policy:
        for name, rule in self.datasets.items():
            if self.require_dp and math.isinf(rule.epsilon_ceiling):
                raise ValueError(f"datasets.{name}.epsilon_ceiling = inf contradicts require_dp = true")
        return self

    def dataset(self, name: str) -> DataSetPolicy:
        """Raises PolicyError for a data set that the policy does not name."""
        if name not in self.datasets:
            raise PolicyError(
                f"data set {name!r} may not be used",
                why="the hospital's policy does not name it",
                fix=f"Add a table [datasets.{name}] to policy.toml if the hospital agrees",
            )
        return self.datasets[name]


def load(path: Path) -> Policy:
    """Read policy.toml. Raises EnvironmentProblem if unreadable, UsageError naming all that is wrong."""
    content = read_file(path, limit=MAX_BYTES)
    try:
        return Policy.model_validate(parse_toml(content, str(path)))
    except ValidationError as error:
        wrong = "; ".join(_line(tuple(item["loc"]), item["msg"]) for item in error.errors())
        raise UsageError(
            f"{path} cannot be used", why=wrong, fix="Correct it, then run `cipherward site policy check`"
        ) from error


def _line(where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{'.'.join(str(part) for part in where)}: {message.lower()}" if where else message
