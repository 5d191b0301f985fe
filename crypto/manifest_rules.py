"""What a manifest must satisfy to mean anything. The consortium checks it before signing and every site and
coordinator checks the same again: nobody relies on somebody else having looked."""

from __future__ import annotations

from cipherward.crypto.pki.requests import SEALING_KEY_BYTES
from cipherward.crypto.requirements import SMALLEST
from cipherward.crypto.requirements import need as _need
from cipherward.crypto.requirements import positive as _positive
from cipherward.crypto.requirements import unique as _unique
from cipherward.crypto.requirements import within as _within
from cipherward.crypto.signing import KEY_BYTES
from cipherward.crypto.strategies import check_strategy
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.errors import FormatError, LimitError, UsageError, VerificationError
from cipherward.ids import DIGEST_BYTES, check_name
from cipherward.proto.v1.study_pb2 import CoordinatorEntry, DpPolicy, Manifest, PlainTraining, RosterSite

MAX_ROUNDS = 100_000
MAX_STEPS = 1_000_000
MAX_DEADLINE = 30 * 86_400
"""Seconds."""


def check_manifest(manifest: Manifest) -> None:
    """All rules on one manifest by itself. Raises VerificationError that names the rule.

    That its suite is not in this version is an error too: what cannot be checked is not signed or joined.
    """
    _check_names(manifest)
    _check_keys(manifest)
    _check_version(manifest)
    _check_training(manifest)
    _check_cohort(manifest)
    _check_suite(manifest)
    check_strategy(manifest)
    _check_deadlines(manifest)


def _check_names(manifest: Manifest) -> None:
    check_name(manifest.consortium, "consortium")
    check_name(manifest.study, "study")
    check_name(manifest.task.name, "task")
    check_name(manifest.coordinator.name, "coordinator")
    _need(len(manifest.roster) > 0, "the roster is empty")
    for site in manifest.roster:
        check_name(site.name, "site")
    _unique((site.name for site in manifest.roster), "a site's name")


def _check_keys(manifest: Manifest) -> None:
    members: list[RosterSite | CoordinatorEntry] = [*manifest.roster, manifest.coordinator]
    for member in members:
        if len(member.signing_key) != KEY_BYTES or len(member.tls_key_digest) != DIGEST_BYTES:
            raise FormatError(f"the manifest lacks a key of {member.name}")
    for site in manifest.roster:
        if len(site.sealing_key) != SEALING_KEY_BYTES:
            raise FormatError(f"the manifest lacks the sealing key of {site.name}")
    # One hospital under two names would count twice towards the minimum cohort.
    _unique((member.signing_key for member in members), "a signing key")
    _unique((member.tls_key_digest for member in members), "a TLS key")
    _unique((site.sealing_key for site in manifest.roster), "a sealing key")
    _need(len(manifest.task.code_digest) == DIGEST_BYTES, "the manifest lacks the digest of the task's code")
    _need(
        len(manifest.initial_weights_digest) == DIGEST_BYTES and manifest.parameter_count >= 1,
        "the manifest lacks the initial weights",
    )


def _check_version(manifest: Manifest) -> None:
    _within(manifest.rounds, 1, MAX_ROUNDS, "the number of rounds")
    _need(manifest.version >= 1, "the manifest's version is 0", "versions count from 1")
    _within(manifest.first_round, 1, manifest.rounds, "the manifest's first round")
    if manifest.version == 1:
        _need(not manifest.previous_digest, "version 1 of a manifest names an earlier one")
        _need(manifest.first_round == 1, "version 1 of a manifest does not begin with round 1")
    else:
        _need(
            len(manifest.previous_digest) == DIGEST_BYTES,
            f"version {manifest.version} of a manifest does not name the one before it",
        )


def _check_training(manifest: Manifest) -> None:
    for site in manifest.roster:
        _positive(site.weight, f"the weight of {site.name}")
        _positive(site.batch_divisor, f"the batch divisor of {site.name}")
    _need(
        manifest.HasField("dp") != manifest.dp_disabled
        and manifest.HasField("plain") == manifest.dp_disabled,
        "the manifest says both that differential privacy is on and that it is off",
    )
    if manifest.dp_disabled:
        _check_constants(manifest.plain)
        _need(manifest.plain.metrics.noise_multiplier == 0, "there is noise on the metrics without DP")
        return
    dp = manifest.dp
    _check_constants(dp)
    _positive(dp.clipping_norm, "the clipping norm C")
    _positive(dp.noise_multiplier, "the noise multiplier sigma")
    _need(0 < dp.delta < 1, f"delta is {dp.delta:g}", "it must lie between 0 and 1")
    _positive(dp.metrics.noise_multiplier, "the noise multiplier of the metrics")


def _check_constants(training: DpPolicy | PlainTraining) -> None:
    rate = training.sampling_rate
    # Patients are drawn by numbers of 53 bits: a rate near 2^-53 would not be the one that is accounted for.
    _within(rate, SMALLEST, 1, "the sampling rate q")
    _within(training.steps, 1, MAX_STEPS, "the number of steps a round")
    _positive(training.learning_rate, "the learning rate")
    _positive(training.metrics.loss_bound, "the bound on a patient's loss")
    _positive(training.metrics.scale, "the scale of the metrics")


def _one_time_keys(manifest: Manifest) -> bool:
    """Whether the suite makes a key for each attempt (quorum), or one for the study (shared-key)."""
    try:
        return suite(manifest.suite.name).key_lifetime is KeyLifetime.ATTEMPT
    except UsageError as error:
        raise VerificationError(error.what, why=error.why, fix=error.fix) from error


def _check_cohort(manifest: Manifest) -> None:
    sites, k = len(manifest.roster), manifest.minimum_cohort
    _need(
        k >= 2,
        f"the minimum cohort k is {k}",
        "a sum over fewer than two hospitals would show one hospital's model",
    )
    _need(k <= sites, f"the minimum cohort k is {k}", f"the roster has only {sites} sites")
    _need(
        manifest.release_to == "sites",
        f"the model cannot be released to {manifest.release_to[:80]!r}",
        "this version releases it to the sites only",
    )
    if _one_time_keys(manifest):
        _check_quorum(sites, k, manifest.threshold, manifest.colluders)
    else:
        _need(
            manifest.threshold == 0 and manifest.colluders == 0 and not manifest.collective_verification,
            f"suite {manifest.suite.name[:80]} has no threshold, colluders or collective verification",
            "every site holds its key",
        )


def _check_quorum(n: int, k: int, t: int, c: int) -> None:
    """Rule 4 of the quorum suite, for the largest J that there can be."""
    least = least_threshold(n)
    _need(least <= t <= n, f"the threshold t is {t}", f"with {n} sites it must be {least} to {n}")
    most = colluders_withstood(t, n)
    _need(
        0 <= c <= most,
        f"the study is to withstand c = {c} colluding sites",
        f"with n = {n} and t = {t} at most {most} can be withstood",
    )
    least = least_cohort(t, c)
    _need(k >= least, f"the minimum cohort k is {k}", f"with t = {t} and c = {c} it must be at least {least}")


def least_threshold(n: int) -> int:
    """The quorum suite's smallest threshold for ``n`` sites; more than n/2 always."""
    return 2 * n // 3 + 1


def effective_threshold(threshold: int, joined: int) -> int:
    """t of a round that n = ``joined`` sites joined: the manifest's, and always more than two thirds of n."""
    return max(threshold, least_threshold(joined))


def least_cohort(threshold: int, colluders: int) -> int:
    """The quorum suite's smallest minimum cohort: without the colluders, two updates are still in every sum."""
    return max(threshold, colluders + 2)


def colluders_withstood(threshold: int, joined: int) -> int:
    """How many active colluders cannot have two sets opened in one round, for n = ``joined`` and t
    (quorum suite, rule 4)."""
    return min(2 * threshold - joined - 1, joined - 2)


def _check_suite(manifest: Manifest) -> None:
    entry = manifest.suite
    names = {site.name for site in manifest.roster}
    if not _one_time_keys(manifest):
        _need(
            entry.key_maker in names,
            f"the key's maker is {entry.key_maker[:80]!r}",
            "it must be a site on the roster",
        )
    else:
        _need(not entry.key_maker, f"suite {entry.name[:80]} has no maker of a key")
    _need(bool(entry.library), "the manifest does not fix the suite's library")
    _positive(entry.bound, "the bound on an update's coordinates")
    try:
        params = suite(entry.name).parameters(entry.parameters, entry.bound, len(names))
        params.check_sites(len(names))
        params.chunk_count(manifest.parameter_count)
    except (UsageError, LimitError) as error:
        raise VerificationError(error.what, why=error.why, fix=error.fix) from error


def _check_deadlines(manifest: Manifest) -> None:
    deadlines = manifest.deadlines
    quorum = int(_one_time_keys(manifest))
    for name, seconds, least in (
        ("join_window", deadlines.join_window, 1),
        ("upload", deadlines.upload, 1),
        ("acknowledge", deadlines.acknowledge, quorum),
        ("unseal", deadlines.unseal, quorum),
        ("verify", deadlines.verify, 1),
    ):
        _within(seconds, least, MAX_DEADLINE, f"the deadline {name}")
