"""Step 3 at a site: under one accepted plan, encrypt, upload, commit. What was sent once is sent again the
same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.records import Plan, StudyTrust
from cipherward.crypto.suites.payload import upload_sizes
from cipherward.errors import EnvironmentProblem, IdentityError, PolicyError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import ShareMessage, UploadHeader, UploadMessage
from cipherward.proto.v1.round_pb2 import Commit, Join, PlanRecord
from cipherward.site_agent.daemon.protection import Protection
from cipherward.site_agent.daemon.revocation import require_site_in_force
from cipherward.site_agent.daemon.study import Study


@dataclass(frozen=True, slots=True)
class _Staged:
    """An attempt's encrypted chunks and sealed shares, on disk."""

    attempt: int
    sizes: list[int]
    leaves: list[bytes]
    share_sizes: list[int]
    share_leaves: list[bytes]

    @property
    def root(self) -> bytes:
        return merkle.root(self.leaves)

    @property
    def share_root(self) -> bytes | None:
        return merkle.root(self.share_leaves) if self.share_leaves else None


class Upload:
    """From the plan to this site's commit."""

    def __init__(self, study: Study, protection: Protection) -> None:
        self._study, self._protection = study, protection

    def upload_and_commit(self, round_number: int, announced_plan: bytes) -> None:
        """Do what is left to do until the commit is posted. Does nothing where this site did not join, or refused
        the plan. Raises what ``takes_part`` raises."""
        if not self.takes_part(round_number, announced_plan):
            return
        if self._study.journal.entry(round_number).commit_record is None:
            plan, trust = self._study.plan(round_number), self._study.trust(round_number)
            staged = self._encrypt(round_number, trust, plan)
            self._send(round_number, plan, staged)
            self._commit(round_number, trust, plan, staged)
        record = self._study.journal.entry(round_number).commit_record
        if record is not None:
            self._study.client.post_commit(self._study.name, Signed.FromString(record))
            self._study.log.info("committed", round=round_number)

    def takes_part(self, round_number: int, announced_plan: bytes = b"") -> bool:
        """Whether this site is in the round's plan and accepts it. One that it refused is refused for good: it then
        neither encrypts under it, nor acknowledges, nor answers.

        Raises at the refusal VerificationError for a plan that must not be believed, IdentityError for one that
        names a revoked site, PolicyError for one that names fewer sites than this hospital wants.
        """
        study = self._study
        entry = study.journal.entry(round_number)
        if entry.join_record is None or entry.skipped:
            return False
        plan = study.plan(round_number, announced_plan)
        if entry.commit_record is not None:
            return True
        try:
            if not self._check_own_join(round_number):
                study.log.warning("the plan was made without this site", round=round_number)
                return False
            trust = study.trust(round_number)
            self._check_cohort(len(plan.joins))
            for name in plan.joins:
                require_site_in_force(study.site, trust, name)
            self._protection.check_plan(trust, plan)
        except (VerificationError, IdentityError, PolicyError) as error:
            study.journal.write(round_number, skipped=str(error))
            raise
        return True

    def _check_own_join(self, round_number: int) -> bool:
        """Whether this site is in the plan, with a join that it posted; another one is an alarm."""
        entry = self._study.journal.entry(round_number)
        signed = PlanRecord.FromString(Signed.FromString(entry.plan_record or b"").payload)
        for join in signed.joins:
            if Join.FromString(join.payload).site == self._study.site.name:
                if not entry.has_joined_with(join.payload):
                    raise VerificationError(
                        "the plan contains a join in this site's name that it did not post"
                    )
                return True
        return False

    def _check_cohort(self, size: int) -> None:
        minimum = self._study.site.policy.minimum_cohort
        if size < minimum:
            raise PolicyError(
                f"the plan names {size} sites", why=f"this hospital's policy wants at least {minimum}"
            )

    def _encrypt(self, round_number: int, trust: StudyTrust, plan: Plan) -> _Staged:
        """The encrypted chunks on disk, of the attempt begun before a restart if they are whole."""
        study, outbox = self._study, self._study.outbox(round_number)
        sizes = upload_sizes(trust.params, study.layout(trust).length)
        entry = study.journal.entry(round_number)
        if entry.attempt and entry.ciphertext_root:
            share_sizes = [SEALED_SHARE_BYTES] * len(plan.joins) if entry.share_root else []
            try:
                leaves: list[bytes] = [merkle.leaf_hash(item) for item in outbox.chunks(entry.attempt, sizes)]
                shares: list[bytes] = (
                    [merkle.leaf_hash(item) for item in outbox.shares(entry.attempt, share_sizes)]
                    if share_sizes
                    else []
                )
            except EnvironmentProblem as error:
                study.log.warning("the outbox is incomplete, encrypting again", why=str(error))
            else:
                staged = _Staged(entry.attempt, sizes, leaves, share_sizes, shares)
                if (staged.root, staged.share_root) == (entry.ciphertext_root, entry.share_root):
                    return staged
        attempt = study.journal.next_attempt(round_number)
        vector = outbox.update(entry.update_digest or b"")
        with self._protection.begin(trust, plan, attempt, entry.update_digest or b"") as encryption:
            leaves = list(outbox.put_chunks(attempt, encryption.encrypt(vector)))
            sealed = encryption.shares(merkle.root(leaves))
        shares = list(outbox.put_shares(attempt, sealed)) if sealed else []
        staged = _Staged(attempt, sizes, leaves, [len(share) for share in sealed], shares)
        study.journal.write(
            round_number,
            chunk_count=len(leaves),
            ciphertext_root=staged.root,
            share_root=staged.share_root,
        )
        return staged

    def _send(self, round_number: int, plan: Plan, staged: _Staged) -> None:
        header = UploadHeader(
            study=self._study.name, round=round_number, attempt=staged.attempt, plan_digest=plan.digest
        )
        whole = (len(staged.leaves), len(staged.share_leaves))
        state = self._study.client.upload_state(header)
        if (state.chunks_stored, state.shares_stored) != whole:
            outbox, first, next_share = (
                self._study.outbox(round_number),
                state.chunks_stored,
                state.shares_stored,
            )

            def messages() -> Iterator[UploadMessage]:
                yield UploadMessage(header=header)
                chunks = outbox.chunks(staged.attempt, staged.sizes, first)
                for index, data in enumerate(chunks, first):
                    yield UploadMessage(index=index, data=data, leaf_hash=staged.leaves[index])
                if staged.share_leaves:
                    shares = outbox.shares(staged.attempt, staged.share_sizes, next_share)
                    for index, sealed in enumerate(shares, next_share):
                        yield UploadMessage(share=ShareMessage(index=index, sealed=sealed))

            state = self._study.client.upload(messages())
        if (state.chunks_stored, state.shares_stored) != whole:
            raise VerificationError(
                f"the coordinator stored {state.chunks_stored} chunks and {state.shares_stored} shares",
                why=f"this site sent {whole[0]} and {whole[1]}",
            )

    def _commit(self, round_number: int, trust: StudyTrust, plan: Plan, staged: _Staged) -> None:
        site = self._study.site
        head = site.ledger.head()
        signed = site.sign(
            Label.COMMIT,
            Commit(
                manifest_digest=trust.digest,
                plan_digest=plan.digest,
                round=round_number,
                attempt=staged.attempt,
                site=site.name,
                length=self._study.layout(trust).length,
                chunk_count=len(staged.leaves),
                ciphertext_root=staged.root,
                share_root=staged.share_root or b"",
                ledger_sequence=head.sequence,
                ledger_head=head.digest,
            ),
        )
        self._study.journal.write(round_number, commit_record=signed.SerializeToString(deterministic=True))
