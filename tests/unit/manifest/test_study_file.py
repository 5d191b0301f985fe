"""Nonsense in study.toml or the roster is refused when the study is signed."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cipherward.crypto import manifest_rules
from cipherward.crypto.study_file import StudyFile
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.trust_statement import trust_statement
from cipherward.errors import CipherwardError, IdentityError, UsageError, VerificationError


def test_the_example_becomes_a_manifest_that_a_site_believes(kit):
    manifest = kit.build()
    seen = kit.trust(manifest).manifest
    assert seen == manifest
    assert list(kit.trust(manifest).sites) == list(kit.NAMES)
    for site in seen.roster:
        own = kit.SITES[site.name]
        assert (site.signing_key, site.sealing_key) == (own.signing_key, own.sealing_key)
        assert site.tls_key_digest == own.tls_key_digest
        assert (site.weight, site.batch_divisor) == (1.0, 25.0 if site.name == "switzerland" else 40.0)
    assert (seen.version, seen.first_round, seen.previous_digest) == (1, 1, b"")
    assert (seen.dp.clipping_norm, seen.dp.noise_multiplier, seen.dp.delta) == (1.0, 2.461, 1e-4)
    assert (seen.dp.sampling_rate, seen.dp.steps, seen.dp.learning_rate) == (0.25, 10, 1.0)
    metrics = seen.dp.metrics
    assert (metrics.loss_bound, metrics.scale, metrics.noise_multiplier) == (2.0, 200.0, 10.0)
    assert (seen.suite.name, seen.suite.parameters, seen.suite.bound) == ("quorum", "q32", 64.0)
    assert seen.suite.library == suite("quorum").parameters("q32").library and not seen.suite.key_maker
    assert (seen.minimum_cohort, seen.threshold, seen.colluders) == (3, 3, 1)
    assert seen.collective_verification and seen.release_to == "sites"
    assert seen.initial_weights_digest == kit.WEIGHTS and seen.task.code_digest == kit.TASK
    assert (seen.deadlines.join_window, seen.deadlines.verify) == (3600, 900)
    assert not seen.HasField("plain") and not seen.dp_disabled


def test_the_examples_other_suite_becomes_a_manifest_too(kit):
    seen = kit.trust(kit.build(kit.SHARED_KEY)).manifest
    assert (seen.suite.name, seen.suite.parameters) == ("shared-key", "seal-4096-48")
    assert seen.suite.library == suite("shared-key").parameters("seal-4096-48").library
    assert (seen.suite.key_maker, seen.minimum_cohort, seen.release_to) == ("cleveland", 3, "sites")
    assert (seen.threshold, seen.colluders, seen.collective_verification) == (0, 0, False)


def test_a_study_without_privacy_says_so_in_full(kit):
    start, end = kit.TEXT.index("\n[dp]\n") + 1, kit.TEXT.index("[suite]")
    plain = kit.edited(("# dp_disabled = true", "dp_disabled = true"), text=kit.TEXT[:start] + kit.TEXT[end:])
    seen = kit.trust(kit.build(plain)).manifest
    assert seen.dp_disabled and not seen.HasField("dp")
    assert (seen.plain.steps, seen.plain.metrics.scale, seen.plain.metrics.noise_multiplier) == (
        10,
        200.0,
        0.0,
    )
    for unclear in (kit.TEXT[:start] + kit.TEXT[end:], kit.edited(("# dp_disabled", "dp_disabled"))):
        with pytest.raises(UsageError, match="clearly whether"):
            kit.build(unclear)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("minimum = 3", "minimum = 1")], "minimum cohort k is 1"),
        ([("minimum = 3", "minimum = 5")], "roster has only 4"),
        ([("minimum = 3", "minimum = -3")], "out of range"),
        ([("rounds = 5", "rounds = 0")], "number of rounds"),
        ([("rounds = 5", f"rounds = {2**40}")], "out of range"),
        ([("sampling_rate = 0.25", "sampling_rate = 0.0")], "sampling rate q"),
        ([("sampling_rate = 0.25", "sampling_rate = 1.01")], "sampling rate q"),
        # Drawn by 53-bit numbers it would be 2^-53, a hundred times what is accounted for.
        ([("sampling_rate = 0.25", "sampling_rate = 1e-18")], "sampling rate q"),
        ([("steps = 10", "steps = 0")], "number of steps"),
        ([("steps = 10", "steps = -1")], "out of range"),
        ([("learning_rate = 1.0            #", "learning_rate = -1.0 #")], "learning rate"),
        ([("server_learning_rate = 1.0", "server_learning_rate = 0")], "server's learning rate"),
        ([("clipping_norm = 1.0", "clipping_norm = 0.0")], "clipping norm"),
        ([("noise_multiplier = 2.461", "noise_multiplier = 0.0")], "noise multiplier sigma"),
        ([("noise_multiplier = 10.0", "noise_multiplier = 0")], "noise multiplier of the metrics"),
        ([("delta = 1e-4", "delta = 1.0")], "delta"),
        ([("delta = 1e-4", "delta = 0.0")], "delta"),
        ([("loss_bound = 2.0", "loss_bound = 0.0")], "bound on a patient's loss"),
        ([("scale = 200.0", "scale = -1")], "scale of the metrics"),
        ([("batch_divisor = 40.0", "batch_divisor = 0")], "batch divisor of cleveland"),
        ([("batch_divisor = 25.0", "batch_divisor = -2")], "batch divisor of switzerland"),
        ([("weight = 1.0", "weight = 0.0")], "weight of switzerland"),
        ([('strategy = "fedavg"', 'strategy = "median"')], "no strategy 'median'"),
        ([('release_to = "sites"', 'release_to = "coordinator"')], "cannot be released to 'coordinator'"),
        ([('name = "quorum"', 'name = "plaintext"')], "no suite 'plaintext'"),
        ([('"q32"', '"seal-4096-48"')], "no parameter set"),
        ([("bound = 64.0", "bound = 1e12")], "bound"),
        ([("bound = 64.0", "bound = 4e6")], "no room for 4 updates"),
        ([("bound = 64.0", "bound = 0.5")], "must be a finite number of at least 1"),
        ([("join_window = 3600", "join_window = 0")], "deadline join_window"),
        ([("upload = 1800", "upload = 99999999")], "deadline upload"),
        ([("verify = 900", "verify = -1")], "out of range"),
        ([('name = "heart-disease"\nrounds', 'name = "Heart Disease"\nrounds')], "'heart-disease' instead"),
        ([('name = "switzerland"\n', 'name = "basel"\n')], r"\[\[sites\]\] sections"),
        ([("# What differs", '[[sites]]\nname = "switzerland"\n# What')], "name a site twice"),
        ([("# first_round = 4 ", "first_round = 4 ")], "does not begin with round 1"),
        ([("# threshold = 3", "threshold = 5")], "threshold t is 5"),
        ([("# threshold = 3", "threshold = 4")], "must be at least 4"),
        ([("minimum = 3", "minimum = 2")], "must be at least 3"),
        ([("# colluders = 1", "colluders = 2")], "c = 2 colluding"),
        ([("# colluders = 1", "colluders = -1")], "out of range"),
        ([("acknowledge = 300", "acknowledge = 0")], "deadline acknowledge"),
        ([("unseal = 300", "unseal = 0")], "deadline unseal"),
        ([("[cohort]", 'key_maker = "hungary"\n[cohort]')], "has no maker"),
        ([('release_to = "sites"', 'release_to = "everybody"')], "cannot be released"),
    ],
)
def test_nonsense_is_refused_when_the_study_is_signed(kit, changes, words):
    _refused(kit.edited(*changes), kit, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("minimum = 3", "minimum = 1")], "minimum cohort k is 1"),
        ([("minimum = 3", "")], "minimum cohort k is 0"),
        ([("# threshold = 3", "threshold = 3")], "no threshold"),
        ([("# colluders = 1", "colluders = 1")], "no threshold"),
        ([("# collective_verification", "collective_verification")], "no threshold"),
        ([('key_maker = "cleveland"', 'key_maker = "basel"')], "key's maker is 'basel'"),
        ([('key_maker = "cleveland"', 'key_maker = ""')], "key's maker is ''"),
        ([("seal-4096-48", "seal-1024-99")], "no parameter set"),
        ([("bound = 64.0", "bound = 30000.0")], "does not fit"),
        ([("bound = 64.0", "bound = 0.0")], "bound"),
    ],
)
def test_nonsense_about_a_shared_key_is_refused_when_the_study_is_signed(kit, changes, words):
    _refused(kit.edited(*changes, text=kit.SHARED_KEY), kit, words)


def _refused(text, kit, words):
    with pytest.raises(CipherwardError, match=words) as caught:
        kit.build(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2 or "instead" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("rounds = 5", "")], "study.rounds, because it is missing"),
        ([("rounds = 5", 'rounds = "five"')], "study.rounds"),
        ([("rounds = 5", "rounds = 5\nround = 6")], "study.round, because there is no such setting"),
        ([("noise_multiplier = 2.461", "noise_multiplier = nan")], "dp.noise_multiplier"),
        ([("noise_multiplier = 2.461", "noise_multiplier = inf")], "dp.noise_multiplier"),
        ([("weight = 1.0", "weight = inf")], "sites.0.weight"),
        ([("[dp.metrics]", "[dp.metric]")], "dp.metric"),
        ([("[metrics]", "[metrics")], "not valid TOML"),
        ([('# code_digest = ""', 'code_digest = "abc"')], "task.code_digest"),
        ([("rounds = 5", "rounds = 5\nrounds = 6")], "not valid TOML"),
    ],
)
def test_a_wrong_study_file_names_the_setting(kit, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        StudyFile.parse(kit.edited(*changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "adaptive_clipping = true",
        "target_quantile = 0.5",
        "clipping_learning_rate = 0.2",
        "initial_clipping = 1.0",
    ],
)
def test_a_study_cannot_ask_for_adaptive_clipping(kit, setting):
    """Flower 1.41 moves an adaptive norm the wrong way (2026). Here C is a constant of the manifest."""
    fixed = next(line for line in kit.TEXT.splitlines() if line.startswith("clipping_norm = "))
    with pytest.raises(UsageError, match=rf"dp\.{setting.split()[0]}, because there is no such setting"):
        StudyFile.parse(kit.edited((fixed, f"{setting}\n{fixed}")))
    for several in ("[0.5, 0.4]", '"adaptive"', "inf", "-0.5"):
        with pytest.raises(CipherwardError, match=r"clipping.norm"):
            kit.build(kit.edited((fixed, f"clipping_norm = {several}")))
    fields = {field.name for field in kit.build().dp.DESCRIPTOR.fields}
    assert {name for name in fields if "clip" in name or "quantile" in name} == {"clipping_norm"}


def test_a_study_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        StudyFile.load(tmp_path / "study.toml")


def test_only_credentials_in_force_and_of_the_right_role_are_signed_for(kit):
    with pytest.raises(IdentityError, match=r"hungary is revoked"):
        kit.build(revocations=kit.status(kit.SITES["hungary"].serial))
    with pytest.raises(IdentityError, match="hub is revoked"):
        kit.build(revocations=kit.status(kit.HUB.serial))
    with pytest.raises(IdentityError, match="has expired"):
        kit.build(now=kit.NOW + 31 * 86_400)
    with pytest.raises(IdentityError, match="cannot be this study's site"):
        kit.build(sites=[*(kit.SITES[name] for name in kit.NAMES), kit.HUB])
    with pytest.raises(IdentityError, match="cannot be this study's coordinator"):
        kit.build(coordinator=kit.SITES["basel"])


def test_an_empty_or_doubled_roster_is_refused(kit):
    bare = kit.TEXT[: kit.TEXT.index("[[sites]]")]
    with pytest.raises(UsageError, match="roster is empty"):
        kit.build(bare, sites=[])
    with pytest.raises(UsageError, match="a site's name occurs twice"):
        kit.build(sites=[*(kit.SITES[name] for name in kit.NAMES), kit.SITES["hungary"]])


def test_a_quorum_study_gets_what_it_does_not_say(kit):
    without = kit.edited(("minimum = 3 ", "# "))
    bare = kit.trust(kit.build(without)).manifest
    assert (bare.minimum_cohort, bare.threshold, bare.colluders) == (3, 3, 1)
    raised = kit.trust(kit.build(kit.edited(("# threshold = 3", "threshold = 4"), text=without))).manifest
    assert (raised.minimum_cohort, raised.threshold, raised.colluders) == (4, 4, 2)
    none = kit.trust(kit.build(kit.edited(("# colluders = 1", "colluders = 0"), text=without))).manifest
    assert (none.minimum_cohort, none.threshold, none.colluders) == (3, 3, 0)
    off = kit.edited(("# collective_verification = true", "collective_verification = false"))
    assert not kit.trust(kit.build(off)).manifest.collective_verification


def test_the_parameter_set_may_be_left_out(kit):
    for text, first in (
        (kit.edited(('parameters = "q32" ', "# ")), "q32"),
        (kit.edited(('parameters = "seal', '# parameters = "seal'), text=kit.SHARED_KEY), "seal-4096-48"),
    ):
        assert kit.trust(kit.build(text)).manifest.suite.parameters == first


@given(st.integers(2, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_what_a_quorum_study_does_not_say_is_always_allowed(n, threshold, colluders):
    t = max(threshold, manifest_rules.least_threshold(n))
    assume(t <= n)
    c = min(colluders, max(0, manifest_rules.colluders_withstood(t, n)))
    manifest_rules._check_quorum(n, manifest_rules.least_cohort(t, c), t, c)
    assert manifest_rules.least_cohort(t, c) <= n


def test_who_can_open_an_update_is_said_in_a_line(kit):
    assert trust_statement(kit.build(kit.SHARED_KEY)) == (
        "Suite shared-key: every site holds the key: one site together with the coordinator can open every update."
    )
    one = "3 of 4 sites open a sum. The coordinator with 1 site cannot open a single update, any 3 sites can."
    assert trust_statement(kit.build()) == f"Suite quorum: {one}"
    four = kit.build(kit.edited(("minimum = 3", "minimum = 4\nthreshold = 4")))
    assert "4 of 4 sites open a sum. The coordinator with 2 sites cannot" in trust_statement(four)
    careless = kit.edited(("# colluders = 1", "colluders = 0\ncollective_verification = false"))
    said = trust_statement(kit.build(careless))
    assert "The coordinator alone cannot open" in said and "can alter a sum" in said


@given(st.integers(2, 60), st.integers(0, 70), st.integers(0, 70), st.integers(0, 70))
def test_quorum_rules_are_the_published_ones(n, k, t, c):
    # quorum rule 4: t > n/2 and t >= floor(2n/3) + 1; k >= max(t, c + 2); c <= min(2t - n - 1, n - 2).
    allowed = 2 * t > n and t >= 2 * n // 3 + 1 and t <= n and k >= t and k >= c + 2
    allowed = allowed and c <= 2 * t - n - 1 and c <= n - 2
    try:
        manifest_rules._check_quorum(n, k, t, c)
    except VerificationError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    ("n", "t", "c"), [(3, 3, 1), (4, 3, 1), (5, 4, 2), (7, 5, 2), (10, 7, 3), (32, 22, 11)]
)
def test_the_table_of_thresholds(n, t, c):
    assert manifest_rules.least_threshold(n) == t
    manifest_rules._check_quorum(n, max(t, c + 2), t, c)
    with pytest.raises(VerificationError):
        manifest_rules._check_quorum(n, n, t, c + 1)
    with pytest.raises(VerificationError):
        manifest_rules._check_quorum(n, n, t - 1, 0)
