"""The models to compare with: each hospital alone with the same DP, all patients pooled with it and without.

Runs as a process of its own, so that the demo need not load torch. Reads a JSON request on stdin: the task,
the sources by name, the constants that the agents used; writes AUCs on stdout. One run of each model: the
repeated comparison with confidence intervals is ``python -m cipherward.evaluation.heart_cv``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from typing import Any

from cipherward.evaluation import baselines
from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.tasks.registry import find
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.constants import PlainSgd, from_json


def _all_tests(sites: list[baselines.SiteData]) -> Records:
    import torch

    return Records(
        torch.cat([site.test.features for site in sites]),
        torch.cat([site.test.labels for site in sites]),
        tuple(f"{site.name}/{patient}" for site in sites for patient in site.test.patient_ids),
    )


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """AUCs by hospital, and of the pooled models on all hospitals' held-out patients together."""
    task: Task = find(request["task"])
    constants = from_json(request["constants"])
    common = {field.name: getattr(constants, field.name) for field in fields(PlainSgd)}
    plain = PlainSgd(**common)
    rounds = request["rounds"]
    sites = [
        baselines.SiteData(name, task.load(source, Split.TRAIN), task.load(source, Split.TEST))
        for name, source in request["sources"].items()
    ]
    start = weights.initial(task, seed=request["seed"])
    pooled_dp = baselines.pooled(task, sites, start, rounds, constants)
    pooled = baselines.pooled(task, sites, start, rounds, plain)
    everyone = _all_tests(sites)

    def auc(model: baselines.Weights, records: Records) -> float | None:
        """None where all held-out patients have the same label, as a small part of a hospital may."""
        return baselines.evaluate(task, model, records).auc

    return {
        "auc_pooled_dp": auc(pooled_dp, everyone),
        "auc_pooled": auc(pooled, everyone),
        "sites": {
            site.name: {
                "auc_local": auc(baselines.alone(task, site, start, rounds, constants), site.test),
                "auc_pooled_dp": auc(pooled_dp, site.test),
                "auc_pooled": auc(pooled, site.test),
            }
            for site in sites
        },
    }


def main() -> int:
    """One request."""
    json.dump(compare(json.load(sys.stdin)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
