"""Strategies in a manifest: what study.toml may leave out, and what signing and sites refuse, by the rule's name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherward.crypto.manifest_rules import check_manifest
from cipherward.crypto.quorum.params import parameters
from cipherward.crypto.shared_noise import LEAST_UNITS, NOISE_ROOM, metrics_noise_share, noise_share
from cipherward.crypto.strategies import CONSTANTS, STRATEGIES, state_values
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.trust_statement import trust_statement
from cipherward.errors import CipherwardError, UsageError, VerificationError
from cipherward.site_agent.daemon.constants import round_cost, training_constants
from cipherward.site_agent.ledger.accounting import epsilon, repeated

EXAMPLES = Path(__file__).parents[3] / "examples" / "heart"
SHARED = (EXAMPLES / "dp-fedsgd.toml").read_text()


def named(kit, strategy, *changes):
    return kit.edited(('strategy = "fedavg"', f'strategy = "{strategy}"'), *changes)


def with_constants(kit, strategy, line):
    return named(kit, strategy, ("[task]", f"[strategy]\n{line}\n[task]"))


def test_the_example_of_shared_noise_becomes_a_manifest_that_a_site_believes(kit):
    seen = kit.trust(kit.build(SHARED)).manifest
    assert (seen.strategy.name, seen.strategy.noise_range) == ("dp-fedsgd", 32.0)
    assert (seen.suite.parameters, seen.suite.bound) == ("q16", 1.0)
    assert (seen.minimum_cohort, seen.threshold, seen.colluders) == (4, 3, 1)
    assert metrics_noise_share(seen) == pytest.approx(20)
    assert trust_statement(seen).endswith(
        "The sites share the noise: epsilon holds against the coordinator with up to 1 site, no more."
    )


@pytest.mark.parametrize("example", ["study.toml", "dp-fedsgd.toml"])
def test_the_examples_cost_what_they_say(kit, example):
    manifest = kit.build((EXAMPLES / example).read_text())
    events = repeated(round_cost(manifest), manifest.rounds)
    assert 2.95 < epsilon(events, manifest.dp.delta) <= 3.0


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_defaults(kit, name):
    text = SHARED if name == "dp-fedsgd" else named(kit, name)
    for line in ("server_learning_rate = 1.0", "noise_range = 32.0"):
        text = text.replace(line, "")
    seen = kit.trust(kit.build(text)).manifest
    kind = STRATEGIES[name]
    assert seen.strategy.server_learning_rate == kind.server_learning_rate
    for constant, value in kind.defaults.items():
        assert getattr(seen.strategy, constant) == value
    assert state_values(seen) == 23 * kind.state_vectors == 23 * (3 if name in ("fedadam", "fedyogi") else 1)


def test_suite_and_bound_follow_from_the_strategy(kit):
    for text, expected in (
        (SHARED.replace('parameters = "q16"', "").replace("bound = 1.0", ""), ("q16", 1.0)),
        (kit.edited(('parameters = "q32" ', "# "), ("bound = 64.0", "")), ("q32", 64.0)),
    ):
        seen = kit.trust(kit.build(text)).manifest
        assert (seen.suite.parameters, seen.suite.bound) == expected


@pytest.mark.parametrize(
    ("strategy", "line", "words"),
    [
        ("fedavg", "proximal = 0.1", "strategy fedavg has no constant proximal"),
        ("fedavg", "noise_range = 32.0", "strategy fedavg has no constant noise_range"),
        ("fedprox", "tau = 0.1", "strategy fedprox has no constant tau"),
        ("fedprox", "proximal = 0.0", r"proximal \(mu\) is 0"),
        ("fedprox", "proximal = -1.0", r"proximal \(mu\) is -1"),
        ("fedadam", "beta1 = 1.0", "fedadam's constant beta1 is 1"),
        ("fedadam", "beta2 = -0.1", "fedadam's constant beta2 is -0.1"),
        ("fedyogi", "beta2 = 1.5", "fedyogi's constant beta2 is 1.5"),
        ("fedyogi", "tau = 0.0", "fedyogi's constant tau is 0"),
        ("fedyogi", "proximal = 0.1", "strategy fedyogi has no constant proximal"),
        ("fedmagic", "", "no strategy 'fedmagic'"),
    ],
)
def test_constants_of_no_strategy_or_out_of_range_are_refused(kit, strategy, line, words):
    with pytest.raises(UsageError, match=words):
        kit.build(with_constants(kit, strategy, line))


def test_an_unknown_constant_is_named(kit):
    with pytest.raises(UsageError, match=r"strategy.momentum, because there is no such setting"):
        StudyFile.parse(with_constants(kit, "fedadam", "momentum = 0.9"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps = 1 ", "steps = 2 "), "dp-fedsgd has 2 steps a round"),
        (("colluders = 1 ", "colluders = 0 "), "is to withstand no colluding site"),
        (("bound = 1.0", "bound = 2.0"), "the bound is 2 with dp-fedsgd"),
        (('name = "switzerland"\n', 'name = "switzerland"\nweight = 0.5\n'), "different weights"),
        (("noise_range = 32.0", "noise_range = 19.0"), "noise_range is 19"),
        (("noise_range = 32.0", "noise_range = 2000.0"), "noise_range is 2000"),
        (("noise_range = 32.0", "noise_range = 32.0\nbeta1 = 0.5"), "has no constant beta1"),
        (("noise_range = 32.0", "noise_range = 600.0"), "noise would be 6.83 units of the encoding by q16"),
        (("scale = 500.0", "scale = 20000.0"), "noise on the metrics would be 4.1 units"),
        (("scale = 500.0", "scale = 399.0"), "the scale of the metrics is 399"),
    ],
)
def test_what_would_break_the_promise_is_refused_when_it_is_signed_and_by_every_site(kit, change, words):
    text = kit.edited(change, text=SHARED)
    with pytest.raises(UsageError, match=words) as caught:
        kit.build(text)
    assert "\n" not in str(caught.value)


def test_shared_noise_is_refused_where_one_site_can_open_an_update(kit):
    text = kit.edited(
        ('name = "quorum"', 'name = "shared-key"\nkey_maker = "cleveland"'),
        ('parameters = "q16"', ""),
        ("threshold = 3", ""),
        ("colluders = 1 ", "# "),
        text=SHARED,
    )
    with pytest.raises(UsageError, match=r"dp-fedsgd cannot run in the suite shared-key, because one site"):
        kit.build(text)


def test_shared_noise_is_refused_without_noise(kit):
    start, end = SHARED.index("\n[dp]\n") + 1, SHARED.index("[suite]")
    text = (SHARED[:start] + SHARED[end:]).replace("[metrics]", "dp_disabled = true\n[metrics]")
    with pytest.raises(UsageError, match="cannot run with dp_disabled"):
        kit.build(text)


NONSENSE = {
    "fewer units": lambda m: setattr(m.strategy, "noise_range", 1000.0),
    "no range": lambda m: setattr(m.strategy, "noise_range", 0.0),
    "range nan": lambda m: setattr(m.strategy, "noise_range", math.nan),
    "range infinite": lambda m: setattr(m.strategy, "noise_range", math.inf),
    "another strategy's constant": lambda m: setattr(m.strategy, "tau", 1.0),
    "constant nan": lambda m: setattr(m.strategy, "proximal", math.nan),
    "server rate zero": lambda m: setattr(m.strategy, "server_learning_rate", 0.0),
    "server rate nan": lambda m: setattr(m.strategy, "server_learning_rate", math.nan),
    "two steps": lambda m: setattr(m.dp, "steps", 2),
    "no colluders": lambda m: setattr(m, "colluders", 0),
    "a weight": lambda m: setattr(m.roster[0], "weight", 2.0),
    "a bound": lambda m: setattr(m.suite, "bound", 1.5),
    "metrics without room": lambda m: setattr(m.dp.metrics, "scale", 100.0),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_site_refuses_nonsense_about_shared_noise_that_the_root_signed(kit, name):
    manifest = kit.build(SHARED)
    kit.trust(manifest)
    NONSENSE[name](manifest)
    with pytest.raises(VerificationError) as caught:
        kit.trust(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("constant", ["beta1", "beta2", "tau"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_a_site_refuses_moments_that_grow_without_end(kit, constant, value):
    manifest = kit.build(named(kit, "fedyogi"))
    setattr(manifest.strategy, constant, value)
    with pytest.raises(VerificationError):
        kit.trust(manifest)


def test_a_study_keeps_its_strategy(kit):
    first = kit.trust(kit.build(named(kit, "fedadam")))
    with pytest.raises(UsageError, match="another strategy, because this study's is fedadam"):
        kit.version_2(previous=first)
    later = named(kit, "fedadam", ("# first_round = 4 ", "first_round = 4 "))
    kit.version_2(later.replace("server_learning_rate = 1.0", "server_learning_rate = 0.5"), previous=first)


@pytest.mark.parametrize("sites", [4, 8, 16, 32, 55])
def test_q16_has_room_for_shared_noise_up_to_55_sites(sites):
    params = parameters("q16", 1.0, sites)
    assert params.scale / STRATEGIES["dp-fedsgd"].defaults["noise_range"] >= 2 * LEAST_UNITS
    assert params.error_bound(sites) < 0.5
    assert STRATEGIES["dp-fedsgd"].defaults["noise_range"] / 2 > NOISE_ROOM


def test_q16_tells_no_number_of_more_than_55_sites():
    with pytest.raises(CipherwardError, match="Use fewer sites"):
        parameters("q16", 1.0, 56)


FIELDS = [
    *(("strategy", name) for name in (*CONSTANTS, "server_learning_rate")),
    *(("dp", name) for name in ("clipping_norm", "noise_multiplier", "sampling_rate", "learning_rate")),
    *(("metrics", name) for name in ("loss_bound", "noise_multiplier", "scale")),
    ("suite", "bound"),
]
ODD = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e-6, 1e9, 1.8e308]


@given(
    st.sampled_from([*STRATEGIES]),
    st.lists(
        st.tuples(st.sampled_from(FIELDS), st.sampled_from(ODD) | st.floats(0, 2000)), min_size=1, max_size=4
    ),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_odd_numbers_are_refused_or_mean_a_study(kit, strategy, changes, cohort, colluders):
    manifest = kit.build(SHARED if strategy == "dp-fedsgd" else named(kit, strategy))
    sections = {
        "strategy": manifest.strategy,
        "dp": manifest.dp,
        "metrics": manifest.dp.metrics,
        "suite": manifest.suite,
    }
    for (section, name), value in changes:
        setattr(sections[section], name, value)
    manifest.minimum_cohort, manifest.colluders = cohort, colluders
    try:
        check_manifest(manifest)
    except VerificationError:
        return
    constants = training_constants(manifest, kit.NAMES[0])
    assert math.isfinite(constants.learning_rate)
    if strategy == "dp-fedsgd":
        assert constants.honest >= 2 and math.isfinite(noise_share(manifest)) and noise_share(manifest) > 0
