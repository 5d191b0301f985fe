"""The policy.toml that `cipherward site init` writes: cautious, and explained line by line."""

from __future__ import annotations

from pathlib import Path

from cipherward.durable import write_file

TEMPLATE = """\
# What this hospital allows. It outranks every study: a study that asks for more is refused, with the reason.
# Check it, and a study against it, with: cipherward site policy check

# Every sum must hold the updates of at least so many hospitals, ours included.
minimum_cohort = 3

# In the quorum suite, so many hospitals must act together to open a sum.
minimum_threshold = 3

# Refuse to train without differential privacy.
require_dp = true

# "quorum": nobody alone can open a sum. With "shared-key" every hospital holds one same key, so that a single
# hospital together with the coordinator can open every hospital's update; add it only if that is acceptable.
allowed_suites = ["quorum"]

# How updates are made. In these four each hospital adds all of its noise itself, and needs to trust nobody for it.
# With "dp-fedsgd" the hospitals share one noise: better models, but the study's epsilon then holds only while no
# more sites collude than the study says; `site policy check` shows what our own share of the noise guarantees.
allowed_strategies = ["fedavg", "fedprox", "fedadam", "fedyogi"]

# Which code may train on our data: the task's digest (64 hex digits), or "installed" for the version that is
# installed here. The coordinator can never send code.
[allowed_tasks]
# heart-disease = "installed"

# One table for each data set. The name is for the ledger; a renamed data set is recognised by its patients.
# [datasets.cardiology]
# source = "/srv/cipherward/cardiology.csv"   # what the task loads
# task = "heart-disease"                      # only this task may use it (optional)
# epsilon_ceiling = 4.0                       # privacy loss of one patient over the data set's whole life
# delta = 1e-6                                # must be below 1 / (10 x number of patients)
# max_lost_reservations = 5                   # rounds that may be paid for and then aborted
"""


def write_default(path: Path) -> None:
    """Write the template. Raises EnvironmentProblem; an existing policy is never overwritten."""
    write_file(path, TEMPLATE.encode(), replace=False)
