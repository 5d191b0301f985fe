"""Updates that many hospitals upload to a real coordinator, as its disk has them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.coordinator.audit.source import Source
from cipherward.crypto.quorum.params import QuorumParams, own_params
from cipherward.crypto.suites.payload import Layout, build
from cipherward.evaluation.threats.kit.made_up import begin
from cipherward.evaluation.threats.kit.service import STUDY, Service, study_file
from cipherward.site_agent.training.metrics import METRICS


def stored_uploads(
    folder: Path, updates: Sequence[NDArray[np.float32]], weights: NDArray[np.float32]
) -> tuple[QuorumParams, list[list[bytes]]]:
    """One round of the quorum suite with a hospital for each update, up to the commits, over mutual TLS; then what the
    coordinator's store and blobs hold: the chunks of each. ``weights``: the study's initial ones, (P,)."""
    names = [f"hospital-{index:03d}" for index in range(len(updates))]
    with ExitStack() as stack:
        service = stack.enter_context(Service(folder, names))
        service.start()
        trust = service.study(study_file("quorum", "", rounds=1), weights)
        sites = begin([service.member(name) for name in names], service.address, trust)
        for site in sites:
            stack.callback(site.close)
            site.join(1)
        layout = Layout(len(weights), METRICS)
        for site, update in zip(sites, updates, strict=True):
            site.contribute(1, build(layout, update, [0.0] * METRICS, trust.params.bound))
    source = Source(service.consortium.coordinator)
    kept = {site: found for (site, _), found in source.round(STUDY, 1).updates.items()}
    return own_params(trust.params), [list(source.chunks(kept[name], 2**20)) for name in names]
