"""DP-SGD's step beside the same step without privacy and beside plain Opacus: same batch, same run.

The three take turns, so that a machine that slows down slows all of them, and each is the median of its turns. On
the CPU it is one thread's processor time, which other processes disturb less than the clock.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UsageError
from cipherward.evaluation.bench.records import Record
from cipherward.evaluation.bench.training.models import MODELS, Measured
from cipherward.site_agent.tasks.base import Records, Split
from cipherward.site_agent.training import forward, weights
from cipherward.site_agent.training.gradients import PatientGradients
from cipherward.site_agent.training.noise import gaussian_mechanism, noise_on

_CLIP = 1.0
_SIGMA = 1.0
_RATE = 0.01
_DEVIATES = 1 << 22
_SECONDS = 6.0
"""For the turns of one model."""
_FEWEST = 5
_MOST = 200
ALL = tuple(model.name for model in MODELS)

Step = Callable[[], None]


def run(models: Sequence[str], add: Callable[[Record], None], note: Callable[[str], None]) -> None:
    """On one CPU thread, and on a GPU where there is one. Raises UsageError for an unknown model."""
    by_name = {model.name: model for model in MODELS}
    for name in models:
        if name not in by_name:
            raise UsageError(f"there is no model {name!r}", fix=f"Choose from {', '.join(by_name)}")
    torch.set_num_threads(1)
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    else:
        note("no CUDA device here: the GPU's figures are not measured")
    for device in devices:
        for name in models:
            for record in _steps(by_name[name](), device):
                add(record)
        add(_noise_speed(device))


def _steps(task: Measured, device: torch.device) -> Iterator[Record]:
    batch = task.size.cpu_batch if device.type == "cpu" else task.size.gpu_batch
    records = task.load(f"{batch}/1", Split.TRAIN)
    ours, noise = _private(task, records, device)
    times = _medians([ours, noise, _plain(task, records, device), _opacus(task, records, device)], device)
    private, its_noise, plain, opacus = times

    def record(figure: str, value: float, unit: str, baseline: float | None) -> Record:
        kind = _device_name(device)
        return Record(
            figure,
            value,
            unit,
            task.name,
            weights.count(task.model()),
            batch,
            torch.get_num_threads(),
            kind,
            baseline,
        )

    yield record("dp_step", 1e3 * private, "ms", 1e3 * plain)
    yield record("opacus_step", 1e3 * opacus, "ms", 1e3 * plain)
    yield record("noise_share", 100 * its_noise / private, "%", None)


def _private(task: Measured, records: Records, device: torch.device) -> tuple[Step, Step]:
    """A step of the product's training, and its noise alone."""
    model = task.model().to(device)
    sampler = PatientGradients(task, model, records, device)
    noise = noise_on(device, KeyStream())
    everybody = np.arange(sampler.patients)

    def step() -> None:
        total, _ = sampler.clipped_sum(everybody, _CLIP)
        total = gaussian_mechanism(total, _SIGMA * _CLIP, noise)
        sampler.step(total.mul_(_RATE / len(everybody)))

    def mechanism() -> None:
        gaussian_mechanism(
            torch.zeros(weights.count(model), dtype=torch.float64, device=device), _SIGMA, noise
        )

    return step, mechanism


def _plain(task: Measured, records: Records, device: torch.device) -> Step:
    """As one would train without privacy, in the same precision."""
    model = task.model().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    rows = torch.arange(len(records.labels))

    def step() -> None:
        optimizer.zero_grad()
        features, labels = _batch(records, rows, device)
        forward.losses(task, model, features, labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _opacus(task: Measured, records: Records, device: torch.device) -> Step:
    """Opacus as its documentation has it: hooks and ``DPOptimizer``, torch's insecure noise, float32."""
    model = GradSampleModule(task.model().to(device).train(), loss_reduction="mean")
    rows = torch.arange(len(records.labels))
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=_RATE),
        noise_multiplier=_SIGMA,
        max_grad_norm=_CLIP,
        expected_batch_size=len(rows),
    )

    def step() -> None:
        optimizer.zero_grad()
        features, labels = _batch(records, rows, device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            task.loss(model(features), labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _batch(records: Records, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = (torch.index_select(values, 0, rows) for values in (records.features, records.labels))
    return features.to(device), labels.to(device)


def _noise_speed(device: torch.device) -> Record:
    """The secret generator, beside torch's own in the same type."""
    noise = noise_on(device, KeyStream())

    def ours() -> None:
        noise.gaussian(_DEVIATES)

    def insecure() -> None:
        torch.randn(_DEVIATES, dtype=torch.float64, device=device)

    mine, other = _medians([ours, insecure], device)
    kind = _device_name(device)
    return Record("noise", _DEVIATES / mine / 1e6, "M/s", "", _DEVIATES, 1, 1, kind, _DEVIATES / other / 1e6)


def _medians(steps: Sequence[Step], device: torch.device) -> list[float]:
    """Seconds of each, taking turns. The first turn is not counted."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in steps]
    end: float | None = None
    while end is None or (len(times[0]) < _MOST and (len(times[0]) < _FEWEST or clock() < end)):
        for step, seconds in zip(steps, times, strict=True):
            began = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if end is not None:
                seconds.append(clock() - began)
        end = end or clock() + _SECONDS
    return [float(np.median(seconds)) for seconds in times]


def _device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
