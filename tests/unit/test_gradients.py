"""Per-patient gradients: every way gives the same clipped sum, and none lets one patient move it by more than C."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, vmap

from cipherward.site_agent.tasks.base import Records, Split, Task
from cipherward.site_agent.tasks.medmnist import MedMnist
from cipherward.site_agent.training import forward, gradients, layers, weights
from cipherward.site_agent.training.ghost import Ghost
from cipherward.site_agent.training.gradients import PatientGradients
from cipherward.site_agent.training.layers import Slots

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more cost these models time, the more so beside other tests


class Classes(Task):
    """Two classes, a model of the test's."""

    name = "classes"

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        self._model = model

    def model(self) -> nn.Module:
        torch.manual_seed(4)
        return self._model()

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.float(), labels, reduction="none")

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1) == labels


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.two = nn.Conv2d(4, 4, 1, stride=2)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grouped(nn.functional.relu(self.norm(self.one(x))) + x) + self.two(x)


def frozen(module: nn.Module, *names: str) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in names
    return module


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "head": (lambda: nn.Linear(9, 2), (9,)),
    "head without bias": (lambda: nn.Linear(9, 2, bias=False), (9,)),
    "bias alone": (lambda: frozen(nn.Linear(9, 2), "weight"), (9,)),
    "network": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 2)), (5,)),
    "frozen body": (
        lambda: frozen(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), "0.weight", "0.bias"),
        (5,),
    ),
    "pictures": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, dilation=2), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), Residual(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        ),
        (1, 9, 10),
    ),
    "sequences": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1, stride=2), nn.Flatten(2), nn.LayerNorm(5), nn.Linear(5, 3),
            nn.LayerNorm([4, 3]), nn.Flatten(), nn.Linear(12, 2),
        ),
        (3, 10),
    ),
}  # fmt: skip


def some_records(owners: list[int], shape: tuple[int, ...], *, scale: float = 1.0, seed: int = 0) -> Records:
    generator = torch.Generator().manual_seed(seed)
    return Records(
        scale * torch.randn(len(owners), *shape, generator=generator),
        torch.randint(0, 2, (len(owners),), generator=generator),
        tuple(f"p{owner}" for owner in owners),
    )


def clipped_sum(task: Task, records: Records, clip_norm: float | None, way: str = "chosen") -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        if way in ("ghost", "gradients"):
            patch.setattr(layers, "GHOST_RATIO", float("inf") if way == "ghost" else 0.0)
        sampler = PatientGradients(task, task.model(), records, CPU)
        if way in ("ghost", "gradients", "hooks"):
            sampler._head = None
        if way == "hooks":
            sampler._ghost = None
        return sampler.clipped_sum(np.arange(sampler.patients), clip_norm)[0]


def by_autograd(task: Task, records: Records, clip_norm: float) -> torch.Tensor:
    """Patient by patient."""
    total = torch.zeros(weights.count(task.model()), dtype=torch.float64)
    for patient in records.patients:
        mine = [number for number, name in enumerate(records.patient_ids) if name == patient]
        model = task.model()
        loss = task.loss(model(records.features[mine]), records.labels[mine]).sum()
        found = torch.autograd.grad(loss, weights.trainable_parameters(model))
        gradient = torch.cat([g.reshape(-1) for g in found]).double()
        total += gradient * min(1.0, clip_norm / float(gradient.norm()))
    return total


def by_vmap(task: Task, records: Records, clip_norm: float) -> torch.Tensor:
    """With torch's own transforms, one gradient a record."""
    model = task.model()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return task.loss(functional_call(model, values, (x[None],)), y[None])[0]

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, records.features, records.labels)
    each = torch.cat([found[name].reshape(len(records.labels), -1) for name in parameters], 1).double()
    owner = torch.tensor([records.patients.index(name) for name in records.patient_ids])
    patients = torch.zeros(len(records.patients), each.shape[1], dtype=torch.float64).index_add_(
        0, owner, each
    )
    return (clip_norm / patients.norm(dim=1)).clamp(max=1) @ patients


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("owners", [[4, 2, 0, 1, 3], [0, 1, 0, 2, 2, 2, 0, 3, 2, 2]], ids=["one", "several"])
@pytest.mark.parametrize("clip_norm", [0.3, 1e6])
def test_all_ways_agree(name: str, owners: list[int], clip_norm: float) -> None:
    build, shape = MODELS[name]
    task, records = Classes(build), some_records(owners, shape, scale=2.0)
    right = by_autograd(task, records, clip_norm)
    assert right.norm() > 0.1
    assert torch.allclose(by_vmap(task, records, clip_norm), right, atol=1e-5, rtol=1e-5)
    for way in ("chosen", "ghost", "gradients", "hooks"):
        found = clipped_sum(task, records, clip_norm, way)
        assert found.dtype == torch.float64
        # Ghost norms are a little too large on purpose.
        assert (found - right).norm() <= (1e-3 if way == "ghost" else 2e-4) * right.norm(), way


@pytest.mark.parametrize("name", MODELS)
def test_the_fast_way_is_taken(name: str) -> None:
    build, shape = MODELS[name]
    task = Classes(build)
    sampler = PatientGradients(task, task.model(), some_records([0, 1], shape), CPU)
    assert sampler._ghost is not None
    assert (sampler._head is not None) == isinstance(task.model(), nn.Linear)


@pytest.mark.parametrize("name", MODELS)
def test_without_clipping_it_is_the_plain_gradient(name: str) -> None:
    build, shape = MODELS[name]
    task, records = Classes(build), some_records([0, 0, 1, 2], shape)
    assert torch.allclose(clipped_sum(task, records, None), by_autograd(task, records, 1e9), atol=1e-5)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["head", "network", "pictures", "sequences"]),
    st.sampled_from(["chosen", "ghost", "gradients", "hooks"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.sampled_from([1e-3, 0.5, 20.0]),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.integers(0, 1000),
    st.booleans(),
)
def test_removing_a_patient_moves_the_sum_by_at_most_c(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    way: str,
    owners: list[int],
    clip_norm: float,
    scale: float,
    seed: int,
    mixed: bool,
) -> None:
    """However many records each has, in whatever order, and in mixed precision too."""
    monkeypatch.setattr(forward, "MIXED", frozenset({"cpu"} if mixed else ()))
    build, shape = MODELS[name]
    task, records = Classes(build), some_records(owners, shape, scale=scale, seed=seed)
    everyone = clipped_sum(task, records, clip_norm, way)
    for patient in records.patients:
        keep = [number for number, owner in enumerate(records.patient_ids) if owner != patient]
        ids = tuple(records.patient_ids[number] for number in keep)
        rest = torch.zeros_like(everyone)
        if keep:
            rest = clipped_sum(
                task, Records(records.features[keep], records.labels[keep], ids), clip_norm, way
            )
        # Rounding, as the others' gradients are computed in another batch; in bfloat16 they may differ visibly, so
        # that only a patient alone is compared.
        if not mixed or not keep:
            assert (everyone - rest).norm() <= clip_norm * (1 + 1e-5 * len(owners))


@pytest.mark.parametrize("way", ["chosen", "ghost", "gradients", "hooks"])
def test_mixed_precision_is_near_and_clips_what_it_sums(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    build, shape = MODELS["pictures"]
    task, records = Classes(build), some_records([0, 1, 1, 2], shape)
    exact = clipped_sum(task, records, 0.1, way)
    monkeypatch.setattr(forward, "MIXED", frozenset({"cpu"}))
    found = clipped_sum(task, records, 0.1, way)
    assert not torch.equal(found, exact)
    assert (found - exact).norm() <= 0.05 * exact.norm()
    alone = some_records([0, 0, 0], shape, scale=5.0)
    assert float(clipped_sum(task, alone, 0.1, way).norm()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("way", ["chosen", "ghost", "gradients", "hooks"])
@pytest.mark.parametrize("name", ["head", "pictures"])
@pytest.mark.parametrize("clip_norm", [0.3, None])
def test_a_gradient_that_is_not_finite_counts_as_zero(name: str, way: str, clip_norm: float | None) -> None:
    build, shape = MODELS[name]
    task, records = Classes(build), some_records([0, 1, 2, 2, 3], shape)
    for bad in (float("nan"), float("inf")):
        poisoned = records.features.clone()
        poisoned[3].view(-1)[0] = bad
        found = clipped_sum(task, Records(poisoned, records.labels, records.patient_ids), clip_norm, way)
        rest = Records(records.features[[0, 1, 4]], records.labels[[0, 1, 4]], ("p0", "p1", "p3"))
        assert torch.allclose(found, clipped_sum(task, rest, clip_norm, way), atol=1e-5)


def test_the_ghost_norm_is_never_too_small_where_positions_cancel() -> None:
    """Two positions whose gradients nearly cancel: <a_s, a_t> <b_s, b_t> are large, their sum is small, and float32
    rounding is larger than what is left. Clipped with too small a norm, the patient would move the sum by more."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(50, 40, bias=False)
    for trial in range(200):
        a = torch.randn(1, 1, 50, generator=generator).expand(1, 2, 50).clone()
        b = torch.randn(1, 1, 40, generator=generator)
        b = torch.cat([b, -b * (1 + 10.0 ** -(2 + trial % 6))], 1)
        exact = b.double().mT @ a.double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "GHOST_RATIO", float("inf"))
            part = layers.parts(layer, a, b, Slots(1))[layer.weight]
        assert float(part.squares[0].sqrt()) >= float(exact.norm()) * (1 - 1e-6)


@pytest.mark.parametrize("positions", [1, 2, 5])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_square_too_small_for_float32_hides_no_norm(positions: int, swapped: bool) -> None:
    tiny, large = torch.full((1, positions, 30), 2.6e-23), torch.full((1, positions, 20), 1e18)
    a, b = (large, tiny) if swapped else (tiny, large)
    layer = nn.Linear(a.shape[2], b.shape[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "GHOST_RATIO", float("inf"))
        part = layers.parts(layer, a, b, Slots(1))[layer.weight]
    assert float(part.squares[0].sqrt()) >= float((b.double().mT @ a.double()).norm()) * (1 - 1e-6)


def test_the_closed_form_bounds_a_patient_of_huge_features_and_a_tiny_loss() -> None:
    task = Classes(lambda: nn.Linear(30, 2, bias=False))
    model = task.model()
    with torch.no_grad():
        model.weight.zero_()  # type: ignore[operator, union-attr]
        model.weight[0, 0] = 52e-18  # type: ignore[index]
    records = Records(torch.full((1, 30), 1e18), torch.zeros(1, dtype=torch.int64), ("a",))
    sampler = PatientGradients(task, model, records, CPU)
    assert sampler._head is not None
    total, dropped = sampler.clipped_sum(np.arange(1), 1e-6)
    assert dropped == 0
    assert 0 < float(total.norm()) <= 1e-6 * (1 + 1e-6)


# Models that only Opacus's hooks know


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.layer(torch.tanh(self.layer(x))))
        return outputs


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.layer(x).mul_(3.0))
        return outputs


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.mark.parametrize(
    "build",
    [Twice, lambda: nn.Sequential(OwnParameter(), nn.Linear(4, 2))],
    ids=["a layer used twice", "a parameter of its own"],
)
def test_models_that_the_fast_way_gets_wrong_are_left_to_the_hooks(build: Callable[[], nn.Module]) -> None:
    task, records = Classes(build), some_records([0, 1, 1, 2], (4,))
    assert Ghost.for_model(task, task.model().train(), records.features) is None
    right = by_autograd(task, records, 0.5)
    assert torch.allclose(clipped_sum(task, records, 0.5), right, atol=1e-5)


def test_an_overwritten_output_is_noticed() -> None:
    task = Classes(InPlace)
    assert Ghost.for_model(task, task.model().train(), torch.zeros(2, 4)) is None


def test_indices_are_left_to_the_hooks() -> None:
    task = Classes(lambda: nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(6, 2)))
    records = Records(torch.tensor([[0, 1], [2, 3], [5, 5]]), torch.tensor([0, 1, 1]), ("a", "b", "a"))
    assert torch.allclose(clipped_sum(task, records, 0.5), by_autograd(task, records, 0.5), atol=1e-5)


def test_pixels_go_the_fast_way() -> None:
    task = MedMnist()
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8, generator=generator)
    records = Records(pixels, torch.tensor([0, 1, 15, 3, 3]), ("a", "b", "a", "c", "b"))
    torch.manual_seed(5)
    model = task.model()
    nn.init.normal_(next(reversed(list(model.modules()))).weight)  # type: ignore[arg-type]
    sampler = PatientGradients(task, model, records, CPU)
    fast, _ = sampler.clipped_sum(np.arange(3), 0.5)
    assert sampler._ghost is not None
    sampler._ghost = None
    assert torch.allclose(fast, sampler.clipped_sum(np.arange(3), 0.5)[0], atol=1e-5)


def test_choosing_a_way_does_not_look_at_values(monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = MODELS["pictures"]
    seen: list[NDArray[np.float32]] = []
    for seed in (1, 2):
        torch.manual_seed(7)
        records = some_records([0, 1], shape, seed=seed)
        model = Classes(build).model()
        torch.manual_seed(8)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))
        Ghost.for_model(Classes(build), model.train(), records.features)
    assert len(seen) == 2
    assert np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("values", [1, 20_000])
@pytest.mark.parametrize("owners", [[4, 2, 0, 1, 3], [0, 1, 0, 2, 2, 2, 0, 3, 2, 2]], ids=["one", "several"])
def test_the_sum_does_not_depend_on_how_much_fits_in_memory(
    monkeypatch: pytest.MonkeyPatch, values: int, owners: list[int]
) -> None:
    """A patient with more records than fit is added up record by record."""
    build, shape = MODELS["pictures"]
    task, records = Classes(build), some_records(owners, shape)
    whole, plain = clipped_sum(task, records, 0.3), clipped_sum(task, records, None)
    monkeypatch.setattr(gradients, "_ACTIVATION_VALUES", {"cpu": values})
    monkeypatch.setattr(gradients, "_GRADIENT_VALUES", 1)
    assert (clipped_sum(task, records, 0.3) - whole).norm() < 1e-3 * whole.norm()
    assert torch.allclose(clipped_sum(task, records, None), plain, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forward, "MIXED", frozenset())
    build, shape = MODELS[name]
    task, records = Classes(build), some_records([0, 1, 0, 2, 2], shape)
    gpu = torch.device("cuda")
    sampler = PatientGradients(task, task.model().to(gpu), records, gpu)
    found, _ = sampler.clipped_sum(np.arange(3), 0.3)
    assert torch.allclose(found.cpu(), by_autograd(task, records, 0.3), atol=1e-4)
