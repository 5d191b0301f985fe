"""What is measured: two released packages and our own parameter sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class System:
    """A measuring script and what it needs."""

    name: str
    label: str
    """The ``suite`` of its records."""
    script: Path
    sites: int
    bytes_a_parameter: int
    """Memory that its process takes at most, measured; for a warning before the machine runs out."""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer(System):
    """Somebody else's package, in a virtual environment of its own."""

    requirements: Path = HERE
    newest_python: tuple[int, int] = (3, 13)
    """What its dependencies have wheels for."""


PEERS = (
    # Four clients: FLARE's decoded uploads take a gigabyte for each 10 M parameters.
    Peer(
        "flare",
        "nvflare 2.9.0 HE",
        HERE / "measure_flare.py",
        sites=4,
        bytes_a_parameter=750,
        requirements=HERE / "flare.txt",
    ),
    Peer(
        "flower",
        "flwr 1.41 SecAgg+",
        HERE / "measure_flower.py",
        sites=10,
        bytes_a_parameter=250,
        requirements=HERE / "flower.txt",
    ),
)

OURS = tuple(
    System(
        label,
        label,
        HERE / "measure_ours.py",
        sites=10,
        bytes_a_parameter=30,
        arguments=("--suite", suite, "--set", parameters),
    )
    for suite, parameters in (("quorum", "q32"), ("quorum", "q16"), ("shared-key", "seal-4096-48"))
    for label in (f"{suite}:{parameters}",)
)
