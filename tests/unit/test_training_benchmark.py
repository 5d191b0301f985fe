"""``cipherward bench training``: real steps, the figures it promises, no unknown model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cipherward.cli.app import build
from cipherward.evaluation.bench.training import run as measured
from cipherward.evaluation.bench.training.models import MODELS, Size, SmallCnn
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.training.gradients import PatientGradients


def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SmallCnn, "size", Size((1, 28, 28), 4, 4))
    monkeypatch.setattr(measured, "_SECONDS", 0.0)
    monkeypatch.setattr(measured, "_FEWEST", 1)
    monkeypatch.setattr(measured, "_DEVIATES", 1000)
    path = tmp_path / "training.json"
    result = CliRunner().invoke(build(), ["bench", "training", "--model", "small-cnn", "--json", str(path)])
    assert result.exit_code == 0, result.output
    records = json.loads(path.read_text())
    on_cpu = [record for record in records if record["device"] == "cpu"]
    assert [record["figure"] for record in on_cpu] == ["dp_step", "opacus_step", "noise_share", "noise"]
    assert all(record["value"] > 0 for record in records)
    assert on_cpu[0]["baseline"] == on_cpu[1]["baseline"] > 0
    assert (on_cpu[0]["params"], on_cpu[0]["sites"]) == (56_194, 4)
    assert 0 < on_cpu[2]["value"] < 100
    if not torch.cuda.is_available():
        assert "no CUDA device" in result.output


def test_an_unknown_model_is_refused() -> None:
    result = CliRunner().invoke(build(), ["bench", "training", "--model", "gpt"])
    assert result.exit_code != 0


@pytest.mark.parametrize("model", [model for model in MODELS if model.name != "resnet-18"])
def test_the_measured_models_take_the_fast_way(model: type[SmallCnn]) -> None:
    task = model()
    records = task.load("3/2", Split.TRAIN)
    assert len(records.patients) == 3
    assert PatientGradients(task, task.model(), records, torch.device("cpu"))._ghost is not None
