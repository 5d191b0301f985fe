"""Finds the rows: the modules of ``rows/``, one a threat."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from cipherward.errors import UsageError
from cipherward.evaluation.threats import rows
from cipherward.evaluation.threats.row import Row

THREATS = {
    "T01": "gradient inversion of a raw update",
    "T02": "coordinator and t - 1 sites open one update",
    "T03": "key custody: whose seized state opens a peer's update",
    "T04": "key recovery from the exact decrypted sum",
    "T05": "a peer's raw upload passed off as the sum",
    "T06": "late, duplicate and replayed updates",
    "T07": "dropout at every step",
    "T08": "two contributor sets or two plans for one round",
    "T09": "made-up cohorts: of one, Sybil sites, swapped keys, threshold 1",
    "T10": "small groups isolated over many rounds",
    "T11": "different models given to different sites",
    "T12": "crafted model layers",
    "T13": "malformed uploads: bit flips, truncation, plaintext",
    "T14": "parser bombs and slow uploads",
    "T15": "a site's false claims: a billion samples, NaN, an oversized norm",
    "T16": "membership inference on the released model",
    "T17": "audit of the differential privacy, with broken mutants",
    "T18": "accounting of the privacy budget",
    "T19": "distributed noise under dropout and collusion",
    "T20": "unit of privacy: one patient, all records",
    "T21": "metadata: what leaves a site in clear",
    "T22": "impersonation",
    "T23": "tampered transcript, forged sum, framed member",
    "T24": "a peer reconstructs from consecutive global models",
}
"""All threats of the model, built or not."""


def _modules() -> dict[str, str]:
    """By id, the module's name."""
    found = {}
    for module in pkgutil.iter_modules(rows.__path__):
        name, _, _ = module.name.partition("_")
        if name.upper() in THREATS:
            found[name.upper()] = f"{rows.__name__}.{module.name}"
    return found


def built() -> list[str]:
    """The ids of rows that exist, in order; nothing of them is loaded."""
    return sorted(_modules())


def load(identity: str) -> Row:
    """The row; raises UsageError if there is none of that id."""
    module = _modules().get(identity.upper())
    if module is None:
        raise UsageError(
            f"there is no row {identity!r}", why=f"rows are {', '.join(built())}", fix="See: threats list"
        )
    row: Row = importlib.import_module(module).ROW
    if row.id != identity.upper():
        raise UsageError(f"{module} calls itself {row.id}")
    return row


def chosen(identities: Sequence[str]) -> list[Row]:
    """These rows, each once, in order; all that are built if none is named."""
    return [load(identity) for identity in sorted({one.upper() for one in identities} or built())]
