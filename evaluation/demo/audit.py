"""The demo's last step: the command that an auditor runs, on the store that the coordinator left behind, and the
transcript that it finds held against each hospital's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cipherward.errors import UnavailableError, VerificationError
from cipherward.evaluation.demo.results import AuditResult


def audit(coordinator: Path, anchor: Path, studies: Sequence[dict[str, Any]]) -> AuditResult:
    """``cipherward audit verify`` on the stopped or running coordinator's folder.

    ``studies``: each site's own status of the one study, as ``site status --json`` gives it. Raises
    VerificationError if something is wrong or a site has another transcript, UnavailableError if the command fails.
    """
    command = ("audit", "verify", "--dir", str(coordinator), "--anchor", str(anchor), "--json")
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "cipherward.cli.app", *command], capture_output=True, text=True, check=False
    )
    try:
        (found,) = json.loads(done.stdout)["studies"]
    except ValueError as error:
        reason = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise UnavailableError("the audit failed", why=reason[-1][-400:]) from error
    if not found["right"]:
        raise VerificationError("the audit found something wrong", why=json.dumps(found["wrong"]))
    head = (found["transcript_round"], found["transcript"])
    agreeing = sum((study["transcript_round"], study["transcript"]) == head for study in studies)
    if agreeing < len(studies):
        raise VerificationError(
            "the hospitals hold different transcripts",
            why=f"{agreeing} of {len(studies)} have the coordinator's",
        )
    return AuditResult(
        closed_rounds=found["closed_rounds"],
        signatures=found["joins"] + found["commits"] + found["model_reports"],
        sums_added_up=len(found["sums_added_up"]),
        not_added_up=[entry["reason"] for entry in found["sums_not_added_up"]],
        transcript=found["transcript"],
    )
