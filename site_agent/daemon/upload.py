"""Step 3 at a site: under one accepted plan, encrypt, upload, commit. What was sent once is sent again the
same."""

from __future__ import annotations

from collections.abc import Iterator

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label
from cipherward.crypto.records import Plan, StudyTrust
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import EnvironmentProblem, PolicyError, VerificationError
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.proto.v1.coordinator_pb2 import UploadHeader, UploadMessage
from cipherward.proto.v1.round_pb2 import Commit, Join, PlanRecord
from cipherward.site_agent.daemon.keys import SharedKeys
from cipherward.site_agent.daemon.revocation import require_site_in_force
from cipherward.site_agent.daemon.study import Study


class Upload:
    """From the plan to this site's commit."""

    def __init__(self, study: Study, keys: SharedKeys) -> None:
        self._study, self._keys = study, keys

    def upload_and_commit(self, round_number: int, announced_plan: bytes) -> None:
        """Do what is left to do until the commit is posted. Does nothing where this site did not join.

        Raises VerificationError for a plan that must not be believed, IdentityError for one that names a revoked
        site, PolicyError for one that names fewer sites than this hospital wants.
        """
        entry = self._study.journal.entry(round_number)
        if entry.join_record is None or entry.skipped:
            return
        plan = self._study.plan(round_number, announced_plan)
        if entry.commit_record is None:
            if not self._check_own_join(round_number):
                self._study.log.warning("the plan was made without this site", round=round_number)
                return
            trust = self._study.trust(round_number)
            self._check_cohort(len(plan.joins))
            for name in plan.joins:
                require_site_in_force(self._study.site, trust, name)
            self._check_key(trust, plan)
            attempt, leaves = self._encrypt(round_number, trust, plan)
            self._send(round_number, plan, attempt, leaves)
            self._commit(round_number, trust, plan, attempt, leaves)
        record = self._study.journal.entry(round_number).commit_record
        if record is not None:
            self._study.client.post_commit(self._study.name, Signed.FromString(record))
            self._study.log.info("committed", round=round_number)

    def _check_own_join(self, round_number: int) -> bool:
        """Whether this site is in the plan, with the very join that it posted; another one is an alarm."""
        entry = self._study.journal.entry(round_number)
        signed = PlanRecord.FromString(Signed.FromString(entry.plan_record or b"").payload)
        own = Signed.FromString(entry.join_record or b"")
        for join in signed.joins:
            if Join.FromString(join.payload).site == self._study.site.name:
                if join.payload != own.payload:
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

    def _check_key(self, trust: StudyTrust, plan: Plan) -> None:
        own = self._keys.get(trust).digest(trust.digest)
        # verify_plan has compared them with each other; this compares them with the key in use.
        if any(join.shared_key_digest != own for join in plan.joins.values()):
            raise VerificationError("the sites of the plan hold another shared key than this site")

    def _encrypt(self, round_number: int, trust: StudyTrust, plan: Plan) -> tuple[int, list[bytes]]:
        """The encrypted chunks on disk, of the attempt begun before a restart if they are whole."""
        study, outbox = self._study, self._study.outbox(round_number)
        entry = study.journal.entry(round_number)
        if entry.attempt and entry.chunk_count and entry.ciphertext_root:
            try:
                stored: list[bytes] = list(outbox.leaves(entry.attempt, entry.chunk_count))
            except EnvironmentProblem as error:
                study.log.warning("the outbox is incomplete, encrypting again", why=str(error))
            else:
                if merkle.root(stored) == entry.ciphertext_root:
                    return entry.attempt, stored
        attempt = study.journal.next_attempt(round_number)
        vector = outbox.update(entry.update_digest or b"")
        with site_side(trust.manifest.suite.name).cipher(self._keys.get(trust), b"") as cipher:
            leaves: list[bytes] = list(outbox.put_chunks(attempt, cipher.encrypt(vector)))
        study.journal.write(round_number, chunk_count=len(leaves), ciphertext_root=merkle.root(leaves))
        return attempt, leaves

    def _send(self, round_number: int, plan: Plan, attempt: int, leaves: list[bytes]) -> None:
        header = UploadHeader(
            study=self._study.name, round=round_number, attempt=attempt, plan_digest=plan.digest
        )
        stored = self._study.client.upload_state(header)
        if stored < len(leaves):
            outbox = self._study.outbox(round_number)

            def messages() -> Iterator[UploadMessage]:
                yield UploadMessage(header=header)
                for index in range(stored, len(leaves)):
                    data = outbox.chunk(attempt, index)
                    yield UploadMessage(index=index, data=data, leaf_hash=leaves[index])

            stored = self._study.client.upload(messages())
        if stored != len(leaves):
            raise VerificationError(f"the coordinator stored {stored} chunks of {len(leaves)}")

    def _commit(
        self, round_number: int, trust: StudyTrust, plan: Plan, attempt: int, leaves: list[bytes]
    ) -> None:
        site = self._study.site
        head = site.ledger.head()
        signed = site.sign(
            Label.COMMIT,
            Commit(
                manifest_digest=trust.digest,
                plan_digest=plan.digest,
                round=round_number,
                attempt=attempt,
                site=site.name,
                length=self._study.layout(trust).length,
                chunk_count=len(leaves),
                ciphertext_root=merkle.root(leaves),
                ledger_sequence=head.sequence,
                ledger_head=head.digest,
            ),
        )
        self._study.journal.write(round_number, commit_record=signed.SerializeToString(deterministic=True))
