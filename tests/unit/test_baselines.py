"""The arms of the comparison are what they say, and the interval is the one it names."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cipherward.errors import UsageError
from cipherward.evaluation import baselines, heart_cv, heart_grid
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.heart_disease import HeartDisease, to_records
from cipherward.site_agent.tasks.heart_disease.data import HOSPITALS, rows
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY
from cipherward.site_agent.training import weights

PLAIN = replace(HEART_STUDY.plain(), sampling_rate=1.0, steps=1)
SHORT = replace(HEART_STUDY, rounds=1, steps=2)


def test_one_federated_full_step_is_one_pooled_step() -> None:
    """With every patient in one step and no privacy, the mean of the sites' moves is the pooled move."""
    sites, start = heart_cv.hospitals(0), weights.initial(HeartDisease(), 0)
    apart = baselines.federated(HeartDisease(), sites, start, 3, PLAIN)
    together = baselines.pooled(HeartDisease(), sites, start, 3, PLAIN)
    assert np.allclose(apart, together, atol=1e-6)
    assert np.abs(apart).max() > 0.01


def test_alone_is_a_federation_of_one() -> None:
    site, start = heart_cv.hospitals(0)[0], weights.initial(HeartDisease(), 0)
    alone = baselines.alone(HeartDisease(), site, start, 2, PLAIN)
    assert np.array_equal(alone, baselines.federated(HeartDisease(), [site], start, 2, PLAIN))
    with pytest.raises(UsageError):
        baselines.federated(HeartDisease(), [], start, 2, PLAIN)


def test_pooling_keeps_patients_of_the_same_id_apart() -> None:
    site = heart_cv.hospitals(0)[2]
    twice = [site, replace(site, name="other")]
    assert len(baselines._concatenate(twice).patients) == 2 * len(site.train.patients)


def test_cross_validation_splits_are_the_tasks_own() -> None:
    for seed in (0, 3):
        for site in heart_cv.hospitals(seed):
            expected = to_records(rows(f"builtin:{site.name}", Split.TEST, seed=seed))
            assert site.test.patient_ids == expected.patient_ids
            assert not set(site.train.patients) & set(site.test.patients)


def test_the_interval_is_nadeau_and_bengios() -> None:
    differences = np.array([0.1, 0.3, 0.2, 0.0, 0.15])
    found = heart_cv.corrected_interval(differences, 1 / 3)
    spread = math.sqrt((1 / 5 + 0.5) * np.var(differences, ddof=1))
    assert found.mean == pytest.approx(0.15)
    assert found.high - found.mean == pytest.approx(stats.t(4).ppf(0.975) * spread)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    with pytest.raises(UsageError, match="two repeats"):
        heart_cv.corrected_interval(differences[:1], 1 / 3)


def test_the_result_is_complete_and_can_be_written(tmp_path: Path) -> None:
    result = heart_cv.cross_validate(SHORT, 2)
    assert json.loads(json.dumps(result)) == result
    assert set(result["hospitals"]) == {*HOSPITALS, "mean"}
    for row in result["hospitals"].values():
        assert set(row["auc"]) == set(heart_cv.ARMS)
        assert all(0 <= value <= 1 for value in row["auc"].values())
        assert row["gain"]["low"] <= row["gain"]["mean"] <= row["gain"]["high"]
        assert row["gain"]["mean"] == pytest.approx(row["auc"]["federated"] - row["auc"]["alone"])
    assert 0.98 * SHORT.epsilon < result["epsilon_spent"] <= SHORT.epsilon
    text = heart_cv.report(result)
    assert all(name in text for name in HOSPITALS)


def test_the_grid_holds_the_study_that_was_chosen() -> None:
    tried = list(heart_grid.combinations())
    assert any(study == HEART_STUDY and type(task) is HeartDisease for task, study in tried)
    assert weights.count(heart_grid.HiddenLayer().model()) == 193
    assert heart_grid.auc(heart_grid.HiddenLayer(), SHORT, 1).shape == (len(HOSPITALS),)
