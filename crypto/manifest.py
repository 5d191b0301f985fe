"""The study manifest: made from study.toml and the members' credentials, signed by the root."""

from __future__ import annotations

from collections.abc import Sequence

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest_rules import (
    check_manifest,
    colluders_withstood,
    least_cohort,
    least_threshold,
)
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.credentials import Credential
from cipherward.crypto.pki.status_list import RevocationSource
from cipherward.crypto.quorum.params import Q16
from cipherward.crypto.quorum.params import SUITE_NAME as QUORUM
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.signing import record_digest
from cipherward.crypto.strategies import SHARED_NOISE, strategy_kind
from cipherward.crypto.study_file import SiteSection, StudyFile
from cipherward.crypto.suites.base import KeyLifetime
from cipherward.crypto.suites.registry import suite
from cipherward.errors import IdentityError, UsageError, VerificationError
from cipherward.ids import Digest, Role
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.study_pb2 import (
    CoordinatorEntry,
    Deadlines,
    DpPolicy,
    Manifest,
    MetricsPolicy,
    PlainTraining,
    RosterSite,
    Strategy,
    SuiteEntry,
    TaskEntry,
)

BOUND, SHARED_NOISE_BOUND = 64.0, 1.0
"""Of the coordinates of an update, where study.toml says nothing."""


def manifest_digest(signed: Signed) -> Digest:
    """What every record of the study names it by."""
    return record_digest(Label.MANIFEST, signed)


def verify_manifest(signed: Signed, anchor: Anchor) -> StudyTrust:
    """A manifest that this consortium's root signed and that makes sense.

    Raises VerificationError or FormatError. Who reads it checks besides that it names itself
    (``require_member``), that it follows from the version before it (``verify_successor``), and its policy.
    """
    manifest = anchor.verify(signed, Label.MANIFEST, Manifest)
    anchor.require_consortium(manifest.consortium, "manifest")
    check_manifest(manifest)
    return StudyTrust(manifest, manifest_digest(signed))


def require_member(trust: StudyTrust, own: Credential) -> None:
    """Raises IdentityError unless the manifest names this site or coordinator with exactly its own keys.

    A roster with somebody else's key in this site's place would let that one speak and open in its name.
    """
    manifest, name = trust.manifest, own.identity.name
    if own.identity.role is Role.SITE:
        entry: RosterSite | CoordinatorEntry = trust.site(name)
        same = trust.site(name).sealing_key == own.sealing_key
    else:
        entry = manifest.coordinator
        same = own.identity.role is Role.COORDINATOR and entry.name == name
    same = same and (entry.signing_key, entry.tls_key_digest) == (own.signing_key, own.tls_key_digest)
    if not same:
        raise IdentityError(
            f"the manifest of study {manifest.study} does not name {own.identity} with the keys it has here",
            why="the keys were made anew after it was signed, or it names somebody else",
            fix="Ask the consortium's admin to sign a new version of the manifest",
        )


def verify_successor(old: StudyTrust, new: StudyTrust) -> None:
    """Raises VerificationError unless ``new`` is the version after ``old`` of the same study and model.

    A shared key belongs to one version (its relay item names the manifest's digest), so that whoever left
    with ``old`` cannot open what is encrypted under ``new``.
    """
    before, after = old.manifest, new.manifest
    name = f"version {after.version} of the manifest of study {after.study}"
    if (after.consortium, after.study) != (before.consortium, before.study):
        raise VerificationError(f"{name} is of another study", why=f"this is {before.study}")
    if after.version != before.version + 1 or after.previous_digest != old.digest:
        raise VerificationError(
            f"{name} does not follow from version {before.version}",
            why="it must have the next number and name that version's digest",
        )
    if after.first_round <= before.first_round:
        raise VerificationError(
            f"{name} is in force from round {after.first_round}",
            why=f"it must be later than round {before.first_round}, where version {before.version} begins",
        )
    kept = ("initial_weights_digest", "parameter_count")
    if any(getattr(after, field) != getattr(before, field) for field in kept):
        raise VerificationError(f"{name} is about another model", why="a study keeps its model")
    if after.suite.name != before.suite.name:
        raise VerificationError(
            f"{name} has another suite", why=f"this study is encrypted by {before.suite.name}"
        )
    if after.strategy.name != before.strategy.name:
        # Its state would not fit, and what a site agreed to would be another guarantee.
        raise VerificationError(f"{name} has another strategy", why=f"this study's is {before.strategy.name}")
    if after.task.name != before.task.name:
        raise VerificationError(f"{name} is about another task", why=f"this is {before.task.name}")


def build_manifest(
    file: StudyFile,
    *,
    anchor: Anchor,
    sites: Sequence[Credential],
    coordinator: Credential,
    revocations: RevocationSource,
    task_code_digest: bytes,
    initial_weights_digest: bytes,
    parameter_count: int,
    previous: StudyTrust | None,
    now: float,
) -> Manifest:
    """The manifest to sign, for ``sites`` in that order, checked as a site will check it.

    ``previous``: the version that this one follows. Raises UsageError for what the file or roster gets wrong,
    IdentityError for a credential that is expired, revoked, or of the wrong role.
    """
    _check_credentials(sites, coordinator, revocations, now)
    manifest = Manifest(
        consortium=anchor.consortium,
        study=file.study.name,
        version=previous.manifest.version + 1 if previous else 1,
        previous_digest=previous.digest if previous else b"",
        roster=_roster(file, sites),
        coordinator=CoordinatorEntry(
            name=coordinator.identity.name,
            signing_key=coordinator.signing_key,
            tls_key_digest=coordinator.tls_key_digest,
        ),
        task=TaskEntry(name=file.task.name, code_digest=task_code_digest),
        initial_weights_digest=initial_weights_digest,
        release_to=file.study.release_to,
        dp_disabled=file.training.dp_disabled,
        signed_at=int(now),
    )
    try:
        _fill_strategy(manifest, file)
        _fill_numbers(manifest, file, parameter_count)
        _fill_training(manifest, file)
        _fill_suite(manifest, file)
        check_manifest(manifest)
        if previous:
            verify_successor(previous, StudyTrust(manifest, Digest(b"")))
    except VerificationError as error:
        raise UsageError(
            error.what, why=error.why, fix=error.fix or "Correct study.toml and sign again"
        ) from error
    return manifest


def _check_credentials(
    sites: Sequence[Credential], coordinator: Credential, revocations: RevocationSource, now: float
) -> None:
    for credential, role in [*((site, Role.SITE) for site in sites), (coordinator, Role.COORDINATOR)]:
        if credential.identity.role is not role:
            raise IdentityError(f"{credential.identity} cannot be this study's {role.value}")
        credential.check(now, revocations)


def _roster(file: StudyFile, sites: Sequence[Credential]) -> list[RosterSite]:
    own = {section.name: section for section in file.sites}
    strangers = own.keys() - {site.identity.name for site in sites}
    if len(own) != len(file.sites) or strangers:
        raise UsageError(
            "the [[sites]] sections do not fit the roster",
            why=f"they name {', '.join(sorted(strangers))}" if strangers else "they name a site twice",
            fix="Give each site of the roster at most one section",
        )
    roster = []
    for site in sites:
        section = own.get(site.identity.name, SiteSection(name=site.identity.name))
        divisor = section.batch_divisor
        roster.append(
            RosterSite(
                name=site.identity.name,
                signing_key=site.signing_key,
                sealing_key=site.sealing_key,
                tls_key_digest=site.tls_key_digest,
                weight=section.weight,
                batch_divisor=file.training.batch_divisor if divisor is None else divisor,
            )
        )
    return roster


def _fill_strategy(manifest: Manifest, file: StudyFile) -> None:
    """What the file leaves out is the strategy's default, and what it says beside the strategy is for the rules to
    refuse."""
    kind, rate = strategy_kind(file.study.strategy), file.study.server_learning_rate
    wanted = {name: value for name, value in file.strategy.model_dump().items() if value is not None}
    manifest.strategy.CopyFrom(
        Strategy(
            name=file.study.strategy,
            server_learning_rate=kind.server_learning_rate if rate is None else rate,
            **{**kind.defaults, **wanted},
        )
    )


def _fill_numbers(manifest: Manifest, file: StudyFile, parameter_count: int) -> None:
    cohort, deadlines = file.cohort, file.deadlines
    quorum = suite(file.suite.name).key_lifetime is KeyLifetime.ATTEMPT
    threshold = max(cohort.threshold, least_threshold(len(manifest.roster))) if quorum else cohort.threshold
    verification = cohort.collective_verification
    try:
        manifest.rounds = file.study.rounds
        manifest.first_round = file.study.first_round
        manifest.parameter_count = parameter_count
        manifest.threshold = threshold
        withstood = max(0, colluders_withstood(threshold, len(manifest.roster))) if quorum else 0
        manifest.colluders = withstood if cohort.colluders is None else cohort.colluders
        # One key for all has no least: how few hospitals may be in a sum is then for the organisers to say.
        least = least_cohort(threshold, manifest.colluders) if quorum else 0
        manifest.minimum_cohort = cohort.minimum or least
        manifest.collective_verification = quorum if verification is None else verification
        manifest.deadlines.CopyFrom(Deadlines(**deadlines.model_dump()))
    except ValueError as error:
        # Protobuf refuses negative and overlong integers when they are set.
        raise UsageError("study.toml has a whole number that is out of range", why=str(error)) from error


def _fill_training(manifest: Manifest, file: StudyFile) -> None:
    training, dp = file.training, file.dp
    if (dp is None) != training.dp_disabled:
        raise UsageError(
            "study.toml does not say clearly whether differential privacy is on",
            why="there is a [dp] section exactly if training.dp_disabled is false",
            fix="Write a [dp] section; or, if all sites agree to train without privacy, dp_disabled = true",
        )
    metrics = MetricsPolicy(
        loss_bound=file.metrics.loss_bound,
        scale=file.metrics.scale,
        noise_multiplier=dp.metrics.noise_multiplier if dp else 0.0,
    )
    try:
        if dp is None:
            manifest.plain.CopyFrom(
                PlainTraining(
                    steps=training.steps,
                    learning_rate=training.learning_rate,
                    sampling_rate=training.sampling_rate,
                    metrics=metrics,
                )
            )
        else:
            manifest.dp.CopyFrom(
                DpPolicy(
                    clipping_norm=dp.clipping_norm,
                    noise_multiplier=dp.noise_multiplier,
                    sampling_rate=training.sampling_rate,
                    steps=training.steps,
                    learning_rate=training.learning_rate,
                    delta=dp.delta,
                    metrics=metrics,
                )
            )
    except ValueError as error:
        raise UsageError("study.toml has a whole number that is out of range", why=str(error)) from error


def _fill_suite(manifest: Manifest, file: StudyFile) -> None:
    wanted = file.suite
    chosen = suite(wanted.name)
    shared = file.study.strategy == SHARED_NOISE
    first = Q16.name if shared and wanted.name == QUORUM else next(iter(chosen.parameter_sets))
    name = wanted.parameters or first
    bound = wanted.bound if wanted.bound is not None else SHARED_NOISE_BOUND if shared else BOUND
    # ``check_manifest`` refuses an empty roster.
    params = chosen.parameters(name, bound, len(manifest.roster) or None)
    manifest.suite.CopyFrom(
        SuiteEntry(
            name=wanted.name,
            parameters=params.name,
            library=params.library,
            bound=bound,
            key_maker=wanted.key_maker,
        )
    )
