"""The strategies' server steps: against plain references, for any state and sum, and the same bits everywhere."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.crypto import strategies as rules
from cipherward.crypto.shared_noise import (
    METRICS_SENSITIVITY,
    NOISE_ROOM,
    honest_contributors,
    metrics_noise_share,
    noise_share,
    realised_noise_multiplier,
)
from cipherward.crypto.transcript import model_digest
from cipherward.errors import FormatError, UsageError, VerificationError
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.site_agent.daemon.constants import round_cost, training_constants
from cipherward.site_agent.ledger.accounting import Gaussian, SampledGaussian
from cipherward.site_agent.strategy.base import weights_of
from cipherward.site_agent.strategy.registry import STRATEGIES, strategy_of
from cipherward.site_agent.training import metrics as training_metrics
from cipherward.site_agent.training.constants import DpSgd, SharedNoise

SIZE = 5
NAMES = ("alpha", "beta", "gamma")


def manifest(name, *, size=SIZE, weights=(1.0, 1.0, 1.0), rate=1.0, **constants):
    return sp.Manifest(
        roster=[
            sp.RosterSite(name=site, weight=weight, batch_divisor=divisor)
            for site, weight, divisor in zip(NAMES, weights, (20.0, 30.0, 40.0), strict=True)
        ],
        parameter_count=size,
        strategy=sp.Strategy(
            name=name,
            server_learning_rate=rate,
            **{**rules.STRATEGIES[name].defaults, **constants},
        ),
        dp=sp.DpPolicy(
            clipping_norm=0.5,
            noise_multiplier=2.0,
            sampling_rate=0.25,
            steps=1,
            learning_rate=0.75,
            delta=1e-5,
            metrics=sp.MetricsPolicy(loss_bound=2.0, noise_multiplier=10.0, scale=500.0),
        ),
        minimum_cohort=3,
        colluders=1,
    )


def f32(value):
    return float(np.float32(value))


def reference_step(name, state, summed, study, contributors):
    """Written from the papers, a coordinate at a time, in Python's floats."""
    scales = {site.name: site.weight / max(s.weight for s in study.roster) for site in study.roster}
    total, rate, made = math.fsum(scales[site] for site in contributors), study.strategy, []
    for index in range(study.parameter_count):
        x, received = state[0][index], f32(summed[index])
        delta = received / total
        if name in ("fedavg", "fedprox"):
            made.append((f32(x + rate.server_learning_rate * delta),))
        elif name == "dp-fedsgd":
            unit = rate.noise_range * (2.0 * 0.5 / math.sqrt(2))
            batch = math.fsum(site.batch_divisor for site in study.roster if site.name in contributors)
            made.append((f32(x - (rate.server_learning_rate * 0.75) * (unit * received) / batch),))
        else:
            m, v = state[1][index], state[2][index]
            m = rate.beta1 * m + (1 - rate.beta1) * delta
            square = delta * delta
            if name == "fedadam":
                v = rate.beta2 * v + (1 - rate.beta2) * square
            else:
                v = v - (1 - rate.beta2) * square * ((v > square) - (v < square))
            x = x + rate.server_learning_rate * m / (math.sqrt(v) + rate.tau)
            made.append((f32(x), f32(m), f32(v)))
    return [list(vector) for vector in zip(*made, strict=True)]


finite = st.floats(-1e3, 1e3, width=32)
vectors = st.lists(finite, min_size=SIZE, max_size=SIZE)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(
    weights=vectors,
    sums=st.lists(vectors, min_size=1, max_size=4),
    rate=st.floats(1e-3, 10),
    sizes=st.tuples(*[st.floats(0.5, 2)] * 3),
    cohort=st.sampled_from([("alpha", "beta"), ("alpha", "gamma"), NAMES]),
)
def test_rounds_give_what_the_papers_say_bit_for_bit(name, weights, sums, rate, sizes, cohort):
    study = manifest(name, rate=rate, weights=(1.0,) * 3 if name == "dp-fedsgd" else sizes)
    strategy, state = strategy_of(study), np.array(weights, np.float32)
    plain = [list(map(float, weights)), [0.0] * SIZE, [study.strategy.tau * study.strategy.tau] * SIZE]
    for summed in sums:
        before = state.copy()
        after = strategy.server_step(state, np.array(summed), study, cohort)
        assert (state == before).all(), "the step changes what it was given"
        plain = reference_step(name, plain, summed, study, cohort)
        assert after.dtype == np.float32 and after.shape == (strategy.state_size(SIZE),)
        assert after.reshape(-1, SIZE).tolist() == plain
        assert weights_of(after, study).tolist() == plain[0]
        state = after


def test_known_answers():
    """By hand: FedAdam and FedYogi after one round of Delta = 1/2, and one of 0 (beta1 1/2, beta2 3/4, tau 1/2)."""
    for name, v1, v2 in (("fedadam", 1 / 4, 3 / 16), ("fedyogi", 1 / 4, 1 / 4)):
        study = manifest(name, size=1, beta1=0.5, beta2=0.75, tau=0.5)
        first = strategy_of(study).server_step(np.zeros(1, np.float32), np.array([1.5]), study, NAMES)
        # v is tau^2 = Delta^2 = 1/4: it stays there by either method. m = 1/4, x = m / (1/2 + 1/2).
        assert first.tolist() == [0.25, 0.25, v1]
        second = strategy_of(study).server_step(first, np.zeros(1), study, NAMES)
        x = float(Fraction(1, 4)) + 0.125 / (math.sqrt(v2) + 0.5)
        assert second.tolist() == [f32(x), 0.125, v2]
    study = manifest("dp-fedsgd", size=1)
    study.minimum_cohort = 5  # h = 4: u = 2 x 0.5 / 2 = 1/2, and 1.0 stands for 32 u = 16
    after = strategy_of(study).server_step(np.ones(1, np.float32), np.array([0.625]), study, NAMES)
    assert after.tolist() == [f32(1 - 0.75 * 10 / 90)]


def test_yogi_moves_slower_than_adam_where_the_gradient_dies_out():
    states = {}
    for name in ("fedadam", "fedyogi"):
        study = manifest(name, size=1)
        state = strategy_of(study).server_step(np.zeros(1, np.float32), np.array([30.0]), study, NAMES)
        for _ in range(20):
            state = strategy_of(study).server_step(state, np.array([0.3]), study, NAMES)
        states[name] = state[2]
    assert states["fedyogi"] > states["fedadam"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_sums_that_differ_by_the_opening_alone_give_the_same_bits(name):
    generator = np.random.default_rng(1)
    study = manifest(name, size=1000)
    state = generator.normal(size=1000).astype(np.float32)
    summed = generator.normal(size=1000)
    first = strategy_of(study).server_step(state, summed, study, NAMES)
    second = strategy_of(study).server_step(state, summed + 1e-13 * generator.normal(size=1000), study, NAMES)
    assert (first == second).mean() > 0.999  # only a sum on the edge of a float32 could differ


_SCRIPT = """
import sys, hashlib
import numpy as np
sys.path.insert(0, {folder!r})
from {module} import manifest
from cipherward.site_agent.strategy.registry import STRATEGIES
total = hashlib.sha256()
for name, strategy in STRATEGIES.items():
    study = manifest(name, size=4099)
    state = np.sin(np.arange(4099)).astype(np.float32)
    for number in range(3):
        state = strategy.server_step(state, np.cos(np.arange(4099.0) * (number + 1)), study, ("alpha", "gamma"))
    total.update(state.tobytes())
print(total.hexdigest())
"""


def test_another_process_with_other_vector_instructions_gets_the_same_bits():
    """numpy picks its loops by the processor's instructions: without the wide ones nothing changes."""
    from pathlib import Path

    script = _SCRIPT.format(folder=str(Path(__file__).parent), module=Path(__file__).stem)
    digests = set()
    for disabled in ("", "AVX512F AVX512_SKX AVX2 FMA3"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={"NPY_DISABLE_CPU_FEATURES": disabled, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 2 * 2**16 + 5])
def test_a_model_of_several_blocks_gets_what_each_of_its_parts_gets(name, size):
    """The step is taken for a block at a time: where one begins makes no difference."""
    generator, whole = np.random.default_rng(2), manifest(name, size=size)
    strategy = strategy_of(whole)
    state = generator.normal(size=size).astype(np.float32)
    sums = generator.normal(size=(2, size))
    after = state
    for summed in sums:
        after = strategy.server_step(after, summed, whole, NAMES)
    for start in range(0, size, 777):
        part = slice(start, min(start + 777, size))
        small = manifest(name, size=part.stop - part.start)
        expected = state[part]
        for summed in sums:
            expected = strategy.server_step(expected, summed[part], small, NAMES)
        found = after.reshape(-1, size)[:, part]
        np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_value_of_any_block_that_is_not_finite_is_refused(name):
    size = 2**16 + 1
    study = manifest(name, size=size)
    summed = np.zeros(size)
    summed[-1] = math.nan
    with pytest.raises(VerificationError, match="not finite"):
        strategy_of(study).server_step(np.zeros(size, np.float32), summed, study, NAMES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_cannot_be_a_step_is_refused(name):
    study = manifest(name)
    strategy, state = strategy_of(study), np.zeros(SIZE, np.float32)
    for bad in (math.inf, math.nan, 1e39):
        with pytest.raises(VerificationError, match="not finite"):
            strategy.server_step(state, np.array([bad] + [0.0] * (SIZE - 1)), study, NAMES)
    huge = np.full(SIZE, 3e38, np.float32)
    study.strategy.server_learning_rate = 1e9
    with pytest.raises(VerificationError, match="not finite"):
        strategy.server_step(huge, np.full(SIZE, -3e38 if name == "dp-fedsgd" else 3e38), study, NAMES)
    with pytest.raises(FormatError):
        strategy.server_step(state, np.zeros(SIZE + 1), study, NAMES)
    for size in (0, SIZE - 1, SIZE + 1, 2 * SIZE, 3 * SIZE + 1):
        with pytest.raises(FormatError):
            strategy.server_step(np.zeros(size, np.float32), np.zeros(SIZE), study, NAMES)
    study.strategy.name = "fedmagic"
    with pytest.raises(UsageError, match="no strategy 'fedmagic'"):
        strategy_of(study)


def test_the_rules_and_the_sites_have_the_same_strategies():
    assert set(STRATEGIES) == set(rules.STRATEGIES)
    for name, strategy in STRATEGIES.items():
        assert rules.state_values(manifest(name)) == strategy.state_size(SIZE)


def test_a_state_is_another_than_its_weights_to_the_digest():
    study = manifest("fedadam")
    after = strategy_of(study).server_step(np.zeros(SIZE, np.float32), np.ones(SIZE), study, NAMES)
    other = after.copy()
    other[-1] += 1
    assert len({model_digest(after), model_digest(other), model_digest(weights_of(after, study))}) == 3


# What a manifest means


def test_noise_shares_add_up_to_the_promise():
    study = manifest("dp-fedsgd")
    honest = honest_contributors(study)
    assert honest == 2
    assert noise_share(study) * math.sqrt(honest) == pytest.approx(2.0 * 0.5)
    assert metrics_noise_share(study) * math.sqrt(honest) == pytest.approx(10.0 * METRICS_SENSITIVITY)
    assert realised_noise_multiplier(study, honest) == 2.0
    assert realised_noise_multiplier(study, 3) == pytest.approx(2.0 * math.sqrt(1.5))
    assert METRICS_SENSITIVITY == training_metrics.SENSITIVITY
    constants = training_constants(study, "beta")
    assert isinstance(constants, SharedNoise)
    assert constants.noise_share == noise_share(study)
    assert constants.metrics_noise_share * training_metrics.SENSITIVITY == pytest.approx(
        metrics_noise_share(study)
    )
    assert (constants.honest, constants.noise_range, constants.divisor) == (2, 32.0, 30.0)
    # The worst case that the manifest allows: h shares, whoever else contributes.
    assert round_cost(study) == (SampledGaussian(2.0, 0.25, 1), Gaussian(10.0))


def test_only_fedprox_has_a_proximal_term():
    for name in ("fedavg", "fedprox", "fedadam", "fedyogi"):
        constants = training_constants(manifest(name), "beta")
        assert isinstance(constants, DpSgd)
        assert constants.proximal == (0.01 if name == "fedprox" else 0.0)


def test_an_upload_has_room_for_its_noise():
    assert NOISE_ROOM >= 8
    assert rules.STRATEGIES["dp-fedsgd"].defaults["noise_range"] > 2 * NOISE_ROOM
