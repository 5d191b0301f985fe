"""A federated study in one process: the agents' training, payload, server step and constants, and nothing between
them but the sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.randomness import KeyStream
from cipherward.crypto.suites import payload
from cipherward.errors import UsageError
from cipherward.evaluation.accuracy.studies import Schedule, Signer, params_of, study_file
from cipherward.evaluation.accuracy.sums import Encryption, make_sums
from cipherward.evaluation.baselines import SiteData, Weights
from cipherward.evaluation.demo.consortium import DemoConsortium
from cipherward.proto.v1.study_pb2 import Manifest
from cipherward.site_agent.daemon.constants import training_constants
from cipherward.site_agent.strategy.base import weights_of
from cipherward.site_agent.strategy.registry import strategy_of
from cipherward.site_agent.tasks.base import Task
from cipherward.site_agent.training.dpsgd import train
from cipherward.site_agent.training.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Federated:
    """``weights``: the final model, (P,). ``clipped``: the share of uploaded coordinates at the encoding's bound."""

    weights: Weights
    clipped: float


class Simulator:
    """Runs federated studies; keeps a consortium in a temporary folder for each set of hospitals that it meets."""

    def __init__(self, encryption: Encryption) -> None:
        self._encryption = encryption
        self._signers: dict[tuple[str, ...], Signer] = {}
        self._folder = TemporaryDirectory(prefix="cipherward-accuracy-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def federated(
        self,
        task: Task,
        sites: Sequence[SiteData],
        start: Weights,
        schedule: Schedule,
        *,
        strategy: str,
        sigma: float,
        patients: float,
    ) -> Federated:
        """A whole study. ``sigma`` 0: without privacy; ``patients``: of an average site, a public constant.

        Raises UsageError for a study that breaks one of the product's rules.
        """
        names = tuple(site.name for site in sites)
        if names not in self._signers:
            folder = Path(self._folder.name) / str(len(self._signers))
            folder.mkdir()
            self._signers[names] = Signer(DemoConsortium(folder), names)
        study = study_file(
            schedule, strategy=strategy, task=task.name, sites=len(sites), patients=patients, sigma=sigma
        )
        return run_study(task, sites, start, self._signers[names].sign(study, start), self._encryption)


def run_study(
    task: Task, sites: Sequence[SiteData], start: Weights, manifest: Manifest, encryption: Encryption
) -> Federated:
    """All rounds of ``manifest``, every site of its roster contributing to each.

    ``sites`` in any order, named as in the roster: UsageError otherwise.
    """
    by_name = {site.name: site for site in sites}
    names = [entry.name for entry in manifest.roster]
    if set(names) != set(by_name) or len(names) != len(sites):
        raise UsageError("the sites are not those of the study's roster")
    strategy, params = strategy_of(manifest), params_of(manifest)
    layout = payload.Layout(manifest.parameter_count, METRICS)
    sums = make_sums(encryption, params, manifest.threshold)
    state: NDArray[np.float32] = start
    clipped = 0
    for _ in range(manifest.rounds):
        vectors = []
        for name in names:
            constants = training_constants(manifest, name)
            result = train(task, by_name[name].train, weights_of(state, manifest), constants, KeyStream())
            scaled = result.update * np.float32(strategy.upload_scale(manifest, name))
            vector = payload.build(layout, scaled, result.metrics, params.bound)
            clipped += int(np.count_nonzero(np.abs(vector[: layout.parameters]) >= params.bound))
            vectors.append(vector)
        opened = payload.split(layout, sums.open(vectors), len(names), params)
        state = strategy.server_step(state, opened.update, manifest, names)
    uploaded = manifest.rounds * len(names) * layout.parameters
    return Federated(weights_of(state, manifest), clipped / uploaded)
