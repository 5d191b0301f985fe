"""The hospital's own look at the model: exact figures on its held-out patients. They stay in its own
state."""

from __future__ import annotations

from dataclasses import asdict

from cipherward.errors import CipherwardError
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.strategy.base import weights_of
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.training.client import TaskRef


def evaluate_model(study: Study) -> None:
    """Evaluate the model in force, once for each round. A failure is logged and holds up nothing."""
    site, row = study.site, study.row()
    if row.model_round in site.studies.evaluations(study.name):
        return
    manifest = study.versions().trusts[-1].manifest
    task = manifest.task
    try:
        figures = site.trainer.evaluate(
            TaskRef(task.name, task.code_digest),
            site.policy.dataset(row.data_set).source,
            Split.TEST,
            weights_of(site.models.get(row.model_digest), manifest),
        )
    except CipherwardError as error:
        study.log.warning("the model was not evaluated", round=row.model_round, error=str(error))
        return
    kept = {name: value for name, value in asdict(figures).items() if value is not None}
    site.studies.put_evaluation(study.name, row.model_round, kept)
    study.log.info(
        "evaluated", round=row.model_round, **{name: round(value, 4) for name, value in kept.items()}
    )
