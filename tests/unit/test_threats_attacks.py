"""The attacks succeed where they must. Rows, and what they need of real processes, run with ``threats run --fast``."""

import numpy as np
import pytest

from cipherward.crypto.quorum.params import parameters
from cipherward.errors import EnvironmentProblem, UsageError, VerificationError
from cipherward.evaluation.threats.attacks import (
    images,
    imprint,
    intervals,
    inversion,
    lira,
    participation,
    suppression,
    vision,
)
from cipherward.evaluation.threats.attacks.ciphertext import read_as_numbers
from cipherward.evaluation.threats.attacks.quorum_sum import opened_sum
from cipherward.evaluation.threats.attacks.short_close import check_close
from cipherward.evaluation.threats.kit.hospital import NAMES, PARAMETERS, Hospitals
from cipherward.evaluation.threats.rows import t07_dropout, t19_shared_noise, t21_metadata
from cipherward.proto.v1.coordinator_pb2 import RoundStatus


@pytest.fixture(scope="module")
def digits():
    return images.digits()


def test_an_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [intervals.mean(rng.normal(3, 2, 10), 0.9).holds(3.0) for _ in range(1000)]
    assert 0.87 < np.mean(covered) < 0.93
    with pytest.raises(UsageError):
        intervals.mean([1.0])


def test_ssim_is_that_of_wang_et_al():
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 8, 8))
    assert images.ssim(one, one) == pytest.approx(1.0)
    # skimage.metrics.structural_similarity(x, 1 - x, data_range=1.0) of a gradient, worked out by hand.
    ramp = np.tile(np.linspace(0, 1, 7), (7, 1))
    mean, variance = 0.5, ramp.var(ddof=1)
    expected = ((2 * mean**2 + 1e-4) * (-2 * variance + 9e-4)) / (
        (2 * mean**2 + 1e-4) * (2 * variance + 9e-4)
    )
    assert images.ssim(ramp, 1 - ramp) == pytest.approx(expected)
    assert abs(images.ssim(one, other)) < 0.6


def test_a_file_that_is_no_medmnist_file_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"not a zip file")
    with pytest.raises(EnvironmentProblem):
        images.medmnist(path)
    np.savez(path, train_images=np.zeros((3, 28, 28), np.uint8), train_labels=np.zeros((3, 1), np.int64))
    assert images.medmnist(path).side == 28


def test_inversion_redraws_the_images_of_plain_updates_and_not_of_ciphertext(digits):
    task, chosen = vision.VisionTask(digits), np.array([[3], [70], [500]])
    start, step = vision.initial(task, 0), vision.plain_step(1)
    true, labels = digits.pixels[chosen], digits.labels[chosen]
    updates = [vision.update(task, vision.records(digits.take(one)), start, step) for one in chosen]
    gradients = inversion.gradients_of(task, start)
    seen = vision.as_gradient(np.stack(updates), step)
    for attack in (inversion.geiping, inversion.dlg):
        assert images.compare(attack(gradients, seen, labels, 8, seed=0), true).own.min() > 0.9
    noise = np.random.default_rng(0).integers(0, 2**32, seen.shape, dtype=np.uint32)
    params = parameters("q32", None, 4)
    read = np.stack([read_as_numbers(params, [row.astype("<u4").tobytes()], seen.shape[1]) for row in noise])
    drawn = inversion.geiping(gradients, read, labels, 8, seed=0, steps=100)
    assert images.compare(drawn, true).own.max() < 0.6


def test_an_imprinting_layer_gives_images_away_unless_there_is_privacy(digits):
    task = vision.VisionTask(digits, 256)
    start = imprint.crafted(task, digits.pixels[:800])
    victims = digits.take(np.arange(900, 916))
    for step, least, most in ((vision.plain_step(16), 8, 16), (vision.private_step(16, 1.0, 0.6), 0, 0)):
        update = vision.update(task, vision.records(victims), start, step)
        found = imprint.read_images(vision.as_gradient(update, step), 256, 8)
        assert least <= imprint.recovered(found, victims.pixels) <= most


def test_suppressed_hospitals_leave_the_victims_image_in_the_sum(digits):
    task = vision.VisionTask(digits, 32)
    honest = vision.initial(task, 0)
    starts = [honest, suppression.dead(task, honest), suppression.dead(task, honest)]
    gradient = suppression.summed_gradient(task, digits, starts, np.array([5, 6, 7]))
    assert images.psnr(suppression.read_image(gradient, 32, 8), digits.pixels[5]) > 30


def test_likelihood_ratios_tell_members_where_scores_do():
    rng = np.random.default_rng(2)
    members = lira.halves(64, 50, 0)
    assert (members.sum(axis=0) == 32).all()
    base = rng.normal(size=50) * 5
    told = lira.judge(base + 3.0 * members + rng.normal(size=members.shape), members)
    blind = lira.judge(base + rng.normal(size=members.shape), members)
    assert lira.true_positive_rate(told.ratios, told.members, 0.01) > 0.5
    assert lira.rate_interval(blind, 0.05, 0.99, 0).holds(0.05)


def test_small_groups_are_found_in_a_participation_matrix():
    matrix = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]])
    assert participation.smallest_group(matrix) == (0,)
    assert participation.single_sites(matrix) == [0, 3]
    assert participation.smallest_group(np.ones((5, 4), dtype=np.int64)) == (0, 1, 2, 3)
    updates = np.random.default_rng(3).normal(size=(4, 7))
    found = participation.disaggregate(matrix, matrix @ updates)
    assert np.allclose(found[[0, 3]], updates[[0, 3]])


def test_the_sum_without_a_network_is_the_sum():
    params = parameters("q16", 1.0, 10)
    vectors = list(np.random.default_rng(4).uniform(-1, 1, (7, 3000)).astype(np.float32))
    opened = opened_sum(params, vectors, 10, b"test")
    assert np.abs(opened - np.sum(vectors, axis=0)).max() <= params.error_bound(7)


def test_a_close_record_over_too_few_is_refused(tmp_path):
    world = Hospitals(tmp_path / "consortium")
    _, trust = world.manifest(np.zeros(PARAMETERS, dtype=np.float32))
    check_close(world, trust, 3, 3)
    with pytest.raises(VerificationError, match="minimum cohort is 3"):
        check_close(world, trust, 3, 2)


def test_too_little_noise_and_uneven_bytes_show_as_often_as_the_report_says():
    rng = np.random.default_rng(5)
    short = 1 - t19_shared_noise._noticed()
    size = (200, t19_shared_noise._LENGTH)
    highs = [
        t19_shared_noise._deviation(noise).high
        for noise in rng.normal(0, short, size) * t19_shared_noise._SIGMA
    ]
    assert 0.82 < np.mean(np.array(highs) < 1) < 0.97
    off, count = t21_metadata._unevenness(2**17), 2**17
    frequencies = (1 + off * np.where(np.arange(256) % 2, 1, -1)) / 256
    made = rng.choice(256, (100, count), p=frequencies).astype(np.uint8)
    caught = [t21_metadata._chance(one.tobytes()) < t21_metadata._LIMIT for one in made]
    assert 0.8 < np.mean(caught) < 0.98
    assert t21_metadata._chance(rng.integers(0, 256, count, dtype=np.uint8).tobytes()) > t21_metadata._LIMIT


def test_a_census_of_nothing_holds_nothing():
    assert not t21_metadata._log("a line for a person at a terminal\n").held
    assert t21_metadata._log('{"event": "joined"}\n{"study": "heart"}').held
    assert not t21_metadata._sizes({name: [] for name in NAMES}).held
    assert t21_metadata._sizes({name: [bytes(8)] for name in NAMES}).held


class _Quiet:
    """A site and a coordinator's status, as far as the end of a round asks them."""

    def __init__(self, *history):
        self.history, self.reason = history, "stopped"

    def until(self, *_):
        pass

    def status(self):
        return self


@pytest.mark.parametrize(
    ("aborted", "contributors", "opened", "wrong"),
    [
        (False, ("alpha", "beta"), 2.0, False),
        (False, ("alpha",), 1.0, True),  # beta committed
        (False, ("alpha", "beta"), 2.5, True),
        (True, (), None, False),
        (False, ("alpha", "beta"), None, True),  # not opened, but the coordinator calls it whole
    ],
)
def test_a_round_that_lacks_somebody_or_ends_in_silence_is_wrong(aborted, contributors, opened, wrong):
    entry = RoundStatus(
        round=1, contributors=contributors, aborted=aborted, reason="too few" if aborted else ""
    )
    study = object.__new__(t07_dropout._Study)
    study.service, study.sites = _Quiet(entry), [_Quiet()]
    sent = {name: np.ones(3, np.float32) for name in ("alpha", "beta")}
    vector = None if opened is None else np.full(3, opened)
    _, error = study._ended(1, sent, vector, {"alpha", "beta"})
    assert (error is not None and error > 1e-3) is wrong
