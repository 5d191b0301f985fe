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
from cipherward.evaluation import baselines, heart_constants, heart_cv, heart_grid
from cipherward.evaluation.accuracy.constants import Arm
from cipherward.evaluation.accuracy.federation import Simulator
from cipherward.evaluation.accuracy.statistics import corrected_interval
from cipherward.evaluation.accuracy.studies import Schedule
from cipherward.evaluation.accuracy.sums import Encryption
from cipherward.evaluation.heart_constants import Step
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.heart_disease import HeartDisease, to_records
from cipherward.site_agent.tasks.heart_disease.data import HOSPITALS, rows
from cipherward.site_agent.tasks.heart_disease.defaults import HEART_STUDY
from cipherward.site_agent.training import weights

SHORT = replace(HEART_STUDY, rounds=1, steps=2)
FULL = Schedule(
    rounds=3, steps=1, sampling_rate=1.0, learning_rate=1.0, clip_norm=1.0, metrics_noise=1.0
)  # fmt: skip


def test_one_federated_full_step_is_one_pooled_step(tmp_path: Path) -> None:
    """With every patient in one step and no privacy, the mean of the sites' moves is the pooled move."""
    sites, start = heart_cv.hospitals(0), weights.initial(HeartDisease(), 0)
    apart = Simulator(Encryption.REAL, tmp_path).federated(
        HeartDisease(), sites, start, FULL, strategy="fedavg", sigma=0.0, patients=50
    )
    together = baselines.pooled(HeartDisease(), sites, start, 3, FULL.local(0.0, 50))
    assert np.allclose(apart, together, atol=1e-5)
    assert np.abs(together).max() > 0.01


def test_shared_noise_is_a_step_on_the_pooled_data(tmp_path: Path) -> None:
    """dp-fedsgd's step differs from the pooled one by the noise alone: sigma sqrt(n / h), and the encoding's."""
    sites, start, sigma = heart_cv.hospitals(0), weights.initial(HeartDisease(), 0), 2.0
    clear = baselines.pooled(HeartDisease(), sites, start, 1, replace(FULL.local(1e-9, 50), steps=1))
    once = replace(FULL, rounds=1, clip_norm=1.0)
    simulator = Simulator(Encryption.SIMULATED, tmp_path)
    noise = [
        simulator.federated(
            HeartDisease(), sites, start, once, strategy="dp-fedsgd", sigma=sigma, patients=50
        )
        - clear
        for _ in range(40)
    ]
    scale = (
        sigma * math.sqrt(4 / 3) / (4 * 50)
    )  # n = 4, h = 3; the encoding's errors add 0.1 % of the variance
    # Around each coordinate's mean: a site's largest coordinates are cut before the noise.
    found = math.sqrt(float(np.var(noise, axis=0, ddof=1).mean())) / scale
    assert found == pytest.approx(1.0, abs=0.1)  # 920 values: 4 sd


def test_no_sites_make_no_pool() -> None:
    with pytest.raises(UsageError):
        baselines.pooled(HeartDisease(), [], weights.initial(HeartDisease(), 0), 2, FULL.local(0.0, 50))


def test_pooling_keeps_patients_of_the_same_id_apart() -> None:
    records = heart_cv.hospitals(0)[2].train
    assert len(baselines.concatenated([("a", records), ("b", records)]).patients) == 2 * len(records.patients)


def test_cross_validation_splits_are_the_tasks_own() -> None:
    for seed in (0, 3):
        for site in heart_cv.hospitals(seed):
            expected = to_records(rows(f"builtin:{site.name}", Split.TEST, seed=seed))
            assert site.test.patient_ids == expected.patient_ids
            assert not set(site.train.patients) & set(site.test.patients)


def test_the_interval_is_nadeau_and_bengios() -> None:
    differences = np.array([0.1, 0.3, 0.2, 0.0, 0.15])
    found = corrected_interval(differences, 1 / 3)
    spread = math.sqrt((1 / 5 + 0.5) * np.var(differences, ddof=1))
    assert found.mean == pytest.approx(0.15)
    assert found.high - found.mean == pytest.approx(stats.t(4).ppf(0.975) * spread)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    with pytest.raises(UsageError, match="two repeats"):
        corrected_interval(differences[:1], 1 / 3)


@pytest.mark.slow
def test_the_result_is_complete_and_can_be_written() -> None:
    result = heart_cv.cross_validate(SHORT, 2)
    assert json.loads(json.dumps(result)) == result
    for setting in heart_cv.SETTINGS:
        assert set(result[setting]) == {*HOSPITALS, "mean"}
        for row in result[setting].values():
            assert set(row["auc"]) == {arm.value for arm in Arm}
            assert all(0 <= value <= 1 for value in row["auc"].values())
            for arm in heart_cv.FEDERATED:
                gain = row["gain"][arm.value]
                assert gain["low"] <= gain["mean"] <= gain["high"]
                assert gain["mean"] == pytest.approx(row["auc"][arm.value] - row["auc"]["alone"])
        assert heart_cv.table(result, setting).row_count == len(HOSPITALS) + 1
    assert 0.98 * SHORT.epsilon < result["epsilon_spent"] <= SHORT.epsilon


def test_a_hospital_that_loses_is_named() -> None:
    gain = {"mean": -0.02, "low": -0.03, "high": -0.01}
    row = {"gain": {"fedavg": gain, "dp-fedsgd": {**gain, "high": 0.01}}}
    assert heart_cv.losers({"in_distribution": {"cleveland": row}}) == ["cleveland with fedavg"]


def test_the_grid_holds_the_study_that_was_chosen(tmp_path: Path) -> None:
    tried = list(heart_grid.combinations())
    schedules = {(study.sampling_rate, study.steps, study.rounds, study.divisor) for _, study in tried}
    assert (
        HEART_STUDY.sampling_rate,
        HEART_STUDY.steps,
        HEART_STUDY.rounds,
        HEART_STUDY.divisor,
    ) in schedules
    assert weights.count(heart_grid.HiddenLayer().model()) == 193
    simulator = Simulator(Encryption.SIMULATED, tmp_path)
    for arm in (Arm.ALONE, *heart_cv.FEDERATED, Arm.POOLED):
        found = heart_grid.auc(simulator, heart_grid.HiddenLayer(), SHORT, arm, 1)
        assert found.shape == (len(HOSPITALS),)
    for epsilon in (1.0, 3.0):
        chosen = heart_constants.steps(epsilon)
        assert set(chosen) == {*HOSPITALS, *(arm.value for arm in Arm if arm is not Arm.ALONE)}
        assert set(chosen.values()) <= set(heart_grid.STEPS)
    assert heart_constants.steps(3.0)[Arm.FEDAVG] == Step(HEART_STUDY.learning_rate, HEART_STUDY.clip_norm)


def test_constants_are_chosen_by_the_rules() -> None:
    first, second, third = Step(1.0, 0.5), Step(1.0, 1.0), Step(2.0, 1.0)
    alone = {first: np.array([0.9, 0.5]), second: np.array([0.8, 0.6])}
    assert heart_grid.best_alone(alone) == [first, second]
    together = {
        first: np.array([0.88, 0.9]),  # the best mean, but the first hospital loses most
        second: np.array([0.89, 0.7]),
        third: np.array([0.892, 0.7]),  # no better than that, for all that is known, and with more noise
    }
    assert heart_grid.best_together(together, alone) == second
    together[third] = np.array([0.894, 0.7])
    assert heart_grid.best_together(together, alone) == third
    assert heart_grid.best_mean(together) == first
