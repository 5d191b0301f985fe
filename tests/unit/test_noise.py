"""The Gaussian mechanism and ChaCha20's noise. Each statistical check is also shown to catch what it is for."""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from cipherward.crypto.randomness import KeyStream
from cipherward.errors import UsageError
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.training import chacha, metrics
from cipherward.site_agent.training import noise as noise_module
from cipherward.site_agent.training.chacha import ChaChaNoise, blocks
from cipherward.site_agent.training.constants import DpSgd, SharedNoise
from cipherward.site_agent.training.dpsgd import train
from cipherward.site_agent.training.noise import Noise, gaussian_mechanism, grid, noise_on

CPU = torch.device("cpu")
KEY = bytes(range(32))
SIZE = 200_000


def stream(number: int = 0) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"))


def aes() -> Noise:
    return noise_on(CPU, stream(3))


def chacha20() -> Noise:
    return ChaChaNoise(stream(3), CPU)


SOURCES = pytest.mark.parametrize("source", [aes, chacha20])


# ChaCha20


def little_endian(words: torch.Tensor) -> bytes:
    return words.T.contiguous().numpy().astype("<i4").tobytes()


@pytest.mark.parametrize(
    ("key", "nonce", "counter", "expected"),
    [
        # RFC 8439, section 2.3.2
        (KEY, "000000090000004a00000000", 1,
         "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
         "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"),
        # RFC 8439, appendix A.1, test vectors 1 to 5
        (bytes(32), "00" * 12, 0,
         "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
         "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
        (bytes(32), "00" * 12, 1,
         "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
         "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
        (bytes(31) + b"\x01", "00" * 12, 1,
         "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
         "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
        (b"\x00\xff" + bytes(30), "00" * 12, 2,
         "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
         "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
        (bytes(32), "00" * 11 + "02", 0,
         "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
         "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"),
    ],
)  # fmt: skip
def test_vectors_of_rfc_8439(key: bytes, nonce: str, counter: int, expected: str) -> None:
    assert little_endian(blocks(key, bytes.fromhex(nonce), counter, 1, CPU)).hex() == expected


@settings(deadline=None, max_examples=40)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=12, max_size=12),
    st.integers(0, 2**32 - 1) | st.sampled_from([2**31 - 2, 2**31, 2**32 - 3]),
    st.integers(1, 40),
)
def test_the_keystream_is_that_of_another_implementation(
    key: bytes, nonce: bytes, first: int, count: int
) -> None:
    count = min(count, 2**32 - first)
    other = Cipher(algorithms.ChaCha20(key, first.to_bytes(4, "little") + nonce), None).encryptor()
    assert little_endian(blocks(key, nonce, first, count, CPU)) == other.update(bytes(64 * count))


@pytest.mark.parametrize(
    ("key", "nonce", "first", "count"),
    [(b"", bytes(12), 0, 1), (KEY, b"", 0, 1), (KEY, bytes(12), 2**32 - 1, 2), (KEY, bytes(12), -1, 1)],
)
def test_a_keystream_that_would_repeat_is_refused(key: bytes, nonce: bytes, first: int, count: int) -> None:
    with pytest.raises(UsageError):
        blocks(key, nonce, first, count, CPU)


def test_no_block_of_the_noise_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the end of the 32-bit counter too, and pieces of every size."""
    seen: list[tuple[bytes, int, int]] = []

    def spy(key: bytes, nonce: bytes, first: int, count: int, device: torch.device) -> torch.Tensor:
        seen.append((nonce, first, count))
        return blocks(key, nonce, first, count, device)

    monkeypatch.setattr(chacha, "blocks", spy)
    monkeypatch.setattr(chacha, "_BLOCKS", 64)
    source = ChaChaNoise(stream(), CPU)
    source._block = 2**32 - 130
    for count in (1, 2, 7, 8, 9, 500, 1, 3000):
        source.gaussian(count)
    used = [(nonce, block) for nonce, first, count in seen for block in range(first, first + count)]
    assert len(set(used)) == len(used)
    assert len({nonce for nonce, _ in used}) == 2
    assert max(block for _, block in used) == 2**32 - 1


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5))
@settings(deadline=None, max_examples=20)
def test_chacha_gives_as_many_as_asked_and_no_two_alike(counts: list[int]) -> None:
    source = chacha20()
    parts = [source.gaussian(count) for count in counts]
    assert [len(part) for part in parts] == counts
    together = torch.cat(parts)
    assert together.dtype == torch.float64
    assert together.isfinite().all()
    assert len(together.unique()) == len(together)


def test_chachas_noise_is_secret_and_stays_in_its_process() -> None:
    source = ChaChaNoise(stream(), CPU)
    assert source._key.hex() not in repr(source)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(source)
    pid = os.fork()
    if pid == 0:
        try:
            source.gaussian(1)
        except UsageError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_two_sources_of_one_stream_differ() -> None:
    one = stream()
    assert not np.intersect1d(ChaChaNoise(one, CPU).gaussian(50), ChaChaNoise(one, CPU).gaussian(50)).size


def test_the_extreme_words_give_finite_noise() -> None:
    for word in (0, -1, 2**31 - 1, -(2**31)):
        words = torch.full((16, 2), word, dtype=torch.int32)
        deviates = chacha._box_muller(words)
        assert deviates.isfinite().all()
        assert deviates.abs().max() < 12.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")
def test_a_gpu_makes_the_same_noise() -> None:
    gpu = torch.device("cuda")
    assert torch.equal(
        blocks(KEY, bytes(12), 2**32 - 100, 100, gpu).cpu(), blocks(KEY, bytes(12), 2**32 - 100, 100, CPU)
    )
    source = noise_on(gpu, stream(3))
    assert isinstance(source, ChaChaNoise)
    deviates = source.gaussian(SIZE)
    assert deviates.device.type == "cuda"
    assert torch.allclose(deviates.cpu(), chacha20().gaussian(SIZE), atol=1e-12)


# The distribution


def is_standard_normal(values: NDArray[np.float64]) -> bool:
    """Shape, body (chi-square over 100 cells of equal chance), moments and both tails."""
    count = len(values)
    cells = np.bincount((stats.norm.cdf(values) * 100).astype(int), minlength=101)
    moments = (
        (values.mean(), 1.0),
        (values.var() - 1, 2.0),
        ((values**3).mean(), 15.0),
        ((values**4).mean() - 3, 96.0),
    )
    tails = [
        stats.binomtest(int((side * values > z).sum()), count, stats.norm.sf(z)).pvalue
        for z in (2.5, 3.0, 3.5, 4.0)
        for side in (-1, 1)
    ]
    return bool(
        stats.kstest(values, "norm").pvalue > 1e-4
        and stats.chisquare(cells[:100], np.full(100, count / 100)).pvalue > 1e-4
        and all(abs(value) < 4.5 * math.sqrt(variance / count) for value, variance in moments)
        and min(tails) > 1e-5
    )


def is_independent(values: NDArray[np.float64]) -> bool:
    """Neither neighbours, nor halves, nor what came from one block, nor their squares, agree."""
    count = len(values)
    return all(
        abs(np.corrcoef(of[:-lag], of[lag:])[0, 1]) < 5 / math.sqrt(count - lag)
        for lag in (1, 2, 3, 4, 8, 1 << 14, 1 << 15, count // 4, count // 2)
        for of in (values, values**2)
    )


@SOURCES
def test_noised_zeros_are_gaussian_and_independent(source: Callable[[], Noise]) -> None:
    deviation = 3.7
    values = (
        gaussian_mechanism(torch.zeros(SIZE, dtype=torch.float64), deviation, source()).numpy() / deviation
    )
    assert is_standard_normal(values)
    assert is_independent(values)


class Wrong:
    """A source with a fault."""

    def __init__(self, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._fault = fault

    def gaussian(self, count: int) -> torch.Tensor:
        return self._fault(chacha20().gaussian(count))


FAULTS = {
    "half the noise": lambda z: z / 2,
    "one per cent too little": lambda z: z * 0.99,
    "biased": lambda z: z + 0.02,
    "no tails": lambda z: z.clamp(-3.2, 3.2),
    "one-sided tail": lambda z: torch.where(z > 3.2, -z, z),
    "uniform": lambda z: math.sqrt(3) * (2 * torch.special.ndtr(z) - 1),
    "noise twice": lambda z: torch.cat([z[: len(z) // 2]] * 2),
    "sine and cosine of one angle": lambda z: torch.cat(
        [z[: len(z) // 2].abs() * torch.sign(z[len(z) // 2 :]), z[len(z) // 2 :].abs()]
    ),
    "the same size as its neighbour": lambda z: z.abs().repeat_interleave(2)[: len(z)] * torch.sign(z),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_catch(fault: str) -> None:
    values = gaussian_mechanism(torch.zeros(SIZE, dtype=torch.float64), 1.0, Wrong(FAULTS[fault])).numpy()
    assert not (is_standard_normal(values) and is_independent(values))


# The grid


@given(st.floats(1e-200, 1e200))
def test_the_grid_is_a_power_of_two_below_the_noise(deviation: float) -> None:
    step = grid(deviation)
    assert math.frexp(step)[0] == 0.5
    assert 2**-17 < step / deviation <= 2**-16


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_there_is_no_mechanism_without_noise(deviation: float) -> None:
    with pytest.raises(UsageError):
        gaussian_mechanism(torch.zeros(2, dtype=torch.float64), deviation, aes())


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.integers(0, 100))
def test_every_noised_number_is_on_the_grid_next_to_its_exact_value(
    deviation: float, sums: float, key: int
) -> None:
    exact = torch.full((50,), sums * deviation, dtype=torch.float64)
    unrounded = exact + deviation * noise_on(CPU, stream(key)).gaussian(50)
    noised = gaussian_mechanism(exact.clone(), deviation, noise_on(CPU, stream(key)))
    multiples = noised / grid(deviation)
    assert torch.equal(multiples, multiples.round())
    assert (noised - unrounded).abs().max() <= grid(deviation) / 2


def has_places_that_only_zero_can_lead_to(noised: torch.Tensor) -> bool:
    """Mironov's observation in its simplest form: 1 + noise is a multiple of 2**-53, so a number with lower
    places came from 0. (At 0 the noise of some coordinates is small, and has them.)"""
    return bool((noised != (noised * 2.0**53).round() * 2.0**-53).any())


@SOURCES
def test_the_low_bits_tell_inputs_apart_without_the_grid_and_not_with_it(source: Callable[[], Noise]) -> None:
    zeros, ones = torch.zeros(2000, dtype=torch.float64), torch.ones(2000, dtype=torch.float64)
    near = (1 + 1 / 3) * source().gaussian(2000)
    assert has_places_that_only_zero_can_lead_to(zeros + near)
    assert not has_places_that_only_zero_can_lead_to((ones + near)[near.abs() < 2])
    for exact in (zeros, ones):
        assert not has_places_that_only_zero_can_lead_to(gaussian_mechanism(exact, 1 + 1 / 3, source()))


# All paths


class Wide(BinaryTask):
    """Many parameters."""

    name = "wide"

    def model(self) -> nn.Module:
        return nn.Linear(999, 1)

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


STEP = DpSgd(
    sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0, loss_bound=2.0, metrics_scale=1.0,
    clip_norm=0.5, noise_multiplier=2.0, metrics_noise_multiplier=3.0,
)  # fmt: skip
SHARE = SharedNoise(
    sampling_rate=1.0, steps=1, divisor=1.0, learning_rate=1.0, loss_bound=2.0, metrics_scale=1.0,
    clip_norm=0.5, noise_multiplier=8.0, metrics_noise_multiplier=6.0, honest=4.0, noise_range=32.0,
)  # fmt: skip


def releases() -> list[tuple[NDArray[np.float64], float]]:
    """What leaves the training, in units in which float32 holds it, and its noise's standard deviation."""
    generator = torch.Generator().manual_seed(0)
    records = Records(
        torch.randn(6, 999, generator=generator),
        torch.tensor([0.0, 1, 0, 1, 1, 0]),
        ("a", "a", "b", "c", "d", "e"),
    )
    start = np.zeros(1000, np.float32)
    step, share = (train(Wide(), records, start, constants, stream(1)) for constants in (STEP, SHARE))
    return [
        (step.update.astype(np.float64), 1.0),
        (share.update.astype(np.float64) * 64, 2.0),
        (step.metrics, 3 * metrics.SENSITIVITY),
        (share.metrics, 3 * metrics.SENSITIVITY),
    ]


def on_the_grid(values: NDArray[np.float64], deviation: float) -> bool:
    multiples = values / grid(deviation)
    return bool((multiples == np.round(multiples)).all())


def test_all_that_is_released_is_on_the_grid() -> None:
    assert SHARE.noise_share == 2.0
    assert all(on_the_grid(values, deviation) for values, deviation in releases())


def test_the_grid_check_catches_a_path_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_module, "grid", lambda deviation: 2.0**-40 * deviation)
    assert not any(on_the_grid(values, deviation) for values, deviation in releases())


def test_training_takes_its_noise_from_the_devices_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU nothing else happens than with ChaCha20 on this device."""
    asked: list[int] = []

    class Counting(ChaChaNoise):
        def gaussian(self, count: int) -> torch.Tensor:
            asked.append(count)
            return super().gaussian(count)

    monkeypatch.setattr(
        "cipherward.site_agent.training.dpsgd.noise_on", lambda device, stream: Counting(stream, device)
    )
    for constants in (replace(STEP, steps=3), SHARE):
        records = Records(torch.zeros(2, 999), torch.zeros(2), ("a", "b"))
        train(Wide(), records, np.zeros(1000, np.float32), constants, stream(1))
    assert asked == [1000] * 4
