"""A federated study in one process: the agents' training, payload, server step and constants, and nothing between
them but the sum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

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
from cipherward.site_agent.training.dpsgd import Training
from cipherward.site_agent.training.metrics import METRICS


class Simulator:
    """Runs federated studies; makes a consortium below ``folder`` for each set of hospitals that it meets."""

    def __init__(self, encryption: Encryption, folder: Path) -> None:
        self._encryption, self._folder = encryption, folder
        self._signers: dict[tuple[str, ...], Signer] = {}

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
    ) -> Weights:
        """A whole study; gives the final model, (P,). ``sigma`` 0: without privacy; ``patients``: of an average site,
        a public constant.

        Raises UsageError for a study that breaks one of the product's rules.
        """
        names = tuple(site.name for site in sites)
        if names not in self._signers:
            self._signers[names] = Signer(DemoConsortium(Path(mkdtemp(dir=self._folder))), names)
        study = study_file(
            schedule, strategy=strategy, task=task.name, sites=len(sites), patients=patients, sigma=sigma
        )
        return run_study(task, sites, start, self._signers[names].sign(study, start), self._encryption)


def run_study(
    task: Task, sites: Sequence[SiteData], start: Weights, manifest: Manifest, encryption: Encryption
) -> Weights:
    """The model after all rounds of ``manifest``, every site of its roster contributing to each.

    ``sites`` in any order, named as in the roster: UsageError otherwise.
    """
    by_name = {site.name: site for site in sites}
    names = [entry.name for entry in manifest.roster]
    if set(names) != set(by_name) or len(names) != len(sites):
        raise UsageError("the sites are not those of the study's roster")
    strategy, params = strategy_of(manifest), params_of(manifest)
    layout = payload.Layout(manifest.parameter_count, METRICS)
    sums = make_sums(encryption, params, manifest.threshold)
    agents = {name: Training(task, by_name[name].train) for name in names}
    state: NDArray[np.float32] = start
    for _ in range(manifest.rounds):
        vectors = []
        for name in names:
            constants = training_constants(manifest, name)
            result = agents[name].round(weights_of(state, manifest), constants, KeyStream())
            scaled = result.update * np.float32(strategy.upload_scale(manifest, name))
            vectors.append(payload.build(layout, scaled, result.metrics, params.bound))
        opened = payload.split(layout, sums.open(vectors), len(names), params)
        state = strategy.server_step(state, opened.update, manifest, names)
    return weights_of(state, manifest)
