"""The demo: makes a consortium, runs a study on it, compares, and reports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cipherward.crypto.shared_noise import noise_share, realised_noise_multiplier
from cipherward.crypto.strategies import SHARED_NOISE
from cipherward.crypto.trust_statement import trust_statement
from cipherward.durable import explained, write_file
from cipherward.errors import UnavailableError, UsageError
from cipherward.evaluation.demo.audit import audit
from cipherward.evaluation.demo.consortium import DemoConsortium, DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.progress import Progress
from cipherward.evaluation.demo.report import write_report
from cipherward.evaluation.demo.results import (
    AuditResult,
    DemoResult,
    RoundResult,
    SharedNoiseResult,
    SiteResult,
)
from cipherward.evaluation.demo.studies import HOSPITALS, STUDY, TASK, check_demo, demo_study, study_file
from cipherward.evaluation.demo.study import RunningStudy
from cipherward.evaluation.demo.table import show_result
from cipherward.evaluation.output import check_writable
from cipherward.evaluation.output import console as new_console
from cipherward.ids import check_name
from cipherward.proto.v1.coordinator_pb2 import StudyStatus
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.training.client import Trainer

SEED = 0
_MARK = ".cipherward-demo"
_SHARED_TRAINER_FROM = 9
"""Sites from which one trainer serves all: torch in 64 processes would not fit a small machine."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of ``cipherward demo``."""

    suite: str
    sites: int
    rounds: int | None
    """None: as many as suit the strategy."""
    epsilon: float
    workdir: Path
    json: Path | None
    strategy: str = "fedavg"


def hospital_parts(count: int) -> dict[str, str]:
    """Names and sources of ``count`` sites: the hospitals, each in as equal a number of parts as goes.

    Raises UsageError for fewer than two.
    """
    if count < 2:
        raise UsageError("the demo needs at least two sites")
    if count <= len(HOSPITALS):
        return {name: f"builtin:{name}" for name in HOSPITALS[:count]}
    sources = {}
    for position, name in enumerate(HOSPITALS):
        parts = count // len(HOSPITALS) + (position < count % len(HOSPITALS))
        for part in range(1, parts + 1):
            sources[f"{name}-{part}"] = f"builtin:{name}/{part}of{parts}"
    return sources


def prepare_folder(path: Path) -> None:
    """An empty folder; an earlier demo's is replaced, anything else is left alone.

    Raises UsageError for a folder with something else in it, EnvironmentProblem.
    """
    with explained("prepare", path):
        if path.exists() and any(path.iterdir()):
            if not (path / _MARK).exists():
                raise UsageError(
                    f"{path} is not empty",
                    why="it does not hold an earlier demo, and a demo would replace what is there",
                    fix="Choose another folder with --workdir",
                )
            shutil.rmtree(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    write_file(path / _MARK, b"made by cipherward demo; replaced by the next one\n")


def compare(sources: dict[str, str], rounds: int, constants: dict[str, Any]) -> dict[str, Any]:
    """The reference models' AUCs, from a process of its own; raises UnavailableError."""
    request = {"task": TASK, "sources": sources, "rounds": rounds, "constants": constants, "seed": SEED}
    done = subprocess.run(
        [sys.executable, "-m", "cipherward.evaluation.demo.reference"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UnavailableError("the comparison failed", why=done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def round_results(status: StudyStatus) -> list[RoundResult]:
    """From the coordinator's records; aborted rounds have no sum and are left out."""
    return [
        RoundResult(
            round=entry.round,
            contributors=list(entry.contributors),
            bytes_up_per_param=entry.bytes_up / len(entry.contributors) / status.parameter_count,
            bytes_down_per_param=entry.bytes_down / len(entry.contributors) / status.parameter_count,
            seconds=entry.seconds,
            seconds_after_join=entry.seconds_after_join,
        )
        for entry in status.history
        if not entry.aborted
    ]


def run(options: Options) -> DemoResult:
    """The whole demo. Raises a CipherwardError that says what to do; no process outlives it."""
    console = new_console()
    sources = hospital_parts(options.sites)
    for name in sources:
        check_name(name, "site")
    # All that can be refused is refused before an earlier demo is replaced.
    plan = demo_study(options.strategy, options.rounds, options.epsilon)
    check_demo(plan, options.suite, len(sources))
    training = plan.training
    if options.json is not None and not options.json.absolute().is_relative_to(options.workdir.absolute()):
        check_writable(options.json)
    start = time.monotonic()
    progress = Progress(console, len(sources), training.rounds)
    progress.step("calibrating the noise")
    sigma = training.noise_multiplier()
    prepare_folder(options.workdir)
    folder = options.workdir.resolve()
    progress.step(f"making keys and certificates for {len(sources)} sites")
    consortium = DemoConsortium(folder)
    for name, source in sources.items():
        site = DemoSite(name, source, options.epsilon, training.delta)
        consortium.add_site(site, TASK, options.suite, strategy=plan.strategy)
    # The trainer makes the initial weights here; in large demos the agents use it too.
    trainer = Trainer(folder / "trainer" / "socket", log=folder / "trainer.log")
    with Processes(folder / "logs") as processes:
        try:
            trainer.start()
            manifest = consortium.sign_study(study_file(plan, options.suite, sources, sigma), SEED, trainer)
            progress.step(trust_statement(manifest))
            shared = len(sources) >= _SHARED_TRAINER_FROM
            if not shared:
                trainer.close()
            study = RunningStudy(consortium, processes, list(sources), "cipherward.cli.app")
            progress.step("starting the coordinator and the agents")
            study.start(folder / "trainer" / "socket" if shared else None)
            ready = time.monotonic()
            with progress:
                status = study.watch(
                    progress.show, seconds=120 + 60 * training.rounds * (1 + len(sources) // 8)
                )
            study.wait_for_sites(60 + 2 * len(sources))
            finished = time.monotonic()
        finally:
            trainer.close()
        progress.step("training the models to compare with")
        reference = compare(sources, training.rounds, training.private(sigma).to_json())
        sites = [study.site_status(name) for name in sources]
        progress.step("auditing what the coordinator kept")
        audited = audit(consortium.coordinator, consortium.anchor, [_own_study(site) for site in sites])
    times = (start, ready, finished, time.monotonic())
    result = _result(options, status, manifest, sites, reference, audited, times)
    show_result(console, result)
    write_report(result, folder / "report.html")
    if options.json is not None:
        write_file(options.json, result.model_dump_json(indent=1).encode() + b"\n")
    console.print(f"report: {folder / 'report.html'}")
    return result


def _own_study(site: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in site["studies"] if entry["study"] == STUDY)
    return found


def _result(
    options: Options,
    status: StudyStatus,
    manifest: Manifest,
    sites: list[dict[str, Any]],
    reference: dict[str, Any],
    audited: AuditResult,
    times: tuple[float, float, float, float],
) -> DemoResult:
    start, ready, finished, end = times
    studies = [_own_study(site) for site in sites]
    results = []
    for site, own in zip(sites, studies, strict=True):
        data = next(entry for entry in site["data_sets"] if entry["name"] == own["data_set"])
        results.append(
            SiteResult(
                name=site["site"],
                patients=data["patients"],
                epsilon=data["epsilon"],
                delta=data["delta"],
                auc_federated=own["evaluations"][-1].get("auc"),
                **reference["sites"][site["site"]],
            )
        )
    return DemoResult(
        suite=status.suite,
        params=status.parameters,
        trust=trust_statement(manifest),
        strategy=manifest.strategy.name,
        parameters=status.parameter_count,
        epsilon_ceiling=options.epsilon,
        sites=results,
        auc_pooled_dp=reference["auc_pooled_dp"],
        auc_pooled=reference["auc_pooled"],
        rounds=round_results(status),
        shared_noise=_shared_noise(manifest, status),
        noisy_accuracy=[entry["accuracy"] for entry in studies[0]["rounds"] if entry["accuracy"] is not None],
        audit=audited,
        seconds_setup=ready - start,
        seconds_study=finished - ready,
        seconds_reference=end - finished,
    )


def _shared_noise(manifest: Manifest, status: StudyStatus) -> SharedNoiseResult | None:
    if manifest.strategy.name != SHARED_NOISE:
        return None
    counts = [len(entry.contributors) for entry in status.history if not entry.aborted]
    return SharedNoiseResult(
        promised=manifest.dp.noise_multiplier,
        realised=[realised_noise_multiplier(manifest, count) for count in counts],
        one_site=noise_share(manifest) / manifest.dp.clipping_norm,
        minimum_cohort=manifest.minimum_cohort,
        colluders=manifest.colluders,
    )
