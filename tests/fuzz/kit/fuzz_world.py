"""A consortium with four sites and one closed round of a study in each suite: all that is valid, to begin from.

Its keys follow from names, so that an input that was found in one process means the same in the next. (ECDSA and
HPKE draw randomness of their own: certificates and seals differ, and old ones stay valid.)
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from cipherward.crypto import merkle
from cipherward.crypto.labels import Label, framed
from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.requests import make_request, verify_request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.quorum.sealed import Answering, Dealing
from cipherward.crypto.quorum_records import sealed_root
from cipherward.crypto.records import verify_close, verify_plan
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey, record_digest
from cipherward.crypto.suites.payload import Layout
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.crypto.transcript import model_digest, transcript_start
from cipherward.ids import Identity, Role
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.identity_pb2 import Revocation
from cipherward.site_agent.daemon.relay import seal_item

NOW = 1_790_000_000.0
SITES = ("anna", "bert", "cora", "dora")
ROLES = {**dict.fromkeys(SITES, Role.SITE), "hub": Role.COORDINATOR, "olga": Role.OPERATOR}
PARAMETERS, METRICS = 2000, 3
LENGTH = Layout(PARAMETERS, METRICS).length
WEIGHTS = np.linspace(-1, 1, PARAMETERS).astype(np.float32)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _bytes(what: str, size: int = 32) -> bytes:
    return hashlib.shake_256(what.encode()).digest(size)


def signing_key(name: str) -> SigningKey:
    """The Ed25519 key of a member, or of ``root``."""
    return SigningKey.from_bytes(_bytes(f"signing {name}"))


def tls_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key."""
    scalar = int.from_bytes(_bytes(f"tls {name}"), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def sealing_key(name: str) -> SealingKey:
    """An HPKE key."""
    return SealingKey.from_bytes(_bytes(f"sealing {name}", 96))


class Consortium:
    """The root, the anchor, and a credential for each member."""

    def __init__(self) -> None:
        self.root = RootKey(signing_key("root"), tls_key("root"))
        self.anchor = self.root.make_anchor("heart", NOW)
        self.status = issue_status_list(self.root, self.anchor, number=1, revoked=[], now=NOW)
        gone = Revocation(serial=77, identity="spiffe://heart/site/gone", reason="left", revoked_at=int(NOW))
        self.newer = issue_status_list(self.root, self.anchor, number=2, revoked=[gone], now=NOW)
        self.identities = {name: Identity.make("heart", role, name) for name, role in ROLES.items()}
        self.requests = {name: self._request(name) for name in ROLES}
        self.credentials = {
            name: issue_credential(self.root, self.anchor, verify_request(signed), days=365, now=NOW)
            for name, signed in self.requests.items()
        }
        self.keys = {str(self.identities[name]): signing_key(name) for name in ROLES} | {
            "root": signing_key("root")
        }

    def _request(self, name):
        role, identity = ROLES[name], self.identities[name]
        sealing = sealing_key(name).public() if role is Role.SITE else b""
        hosts = ["127.0.0.1", "hub.example.org"] if role is Role.COORDINATOR else []
        key = signing_key(name)
        return make_request(identity, key, tls_key(name), sealing_key=sealing, hosts=hosts, now=NOW)

    def sign(self, name, label, message):
        """By a member."""
        return signing_key(name).sign(label, message, str(self.identities[name]))

    def manifest(self, suite_name: str, parameters: str, **changes) -> sp.Manifest:
        """The fields of a study's manifest."""
        quorum = suite_name == "quorum"
        params = suite(suite_name).parameters(parameters, 4.0 if parameters != "q16" else 1.0, len(SITES))
        fields = {
            "consortium": "heart",
            "study": f"trial-{parameters}",
            "version": 1,
            "first_round": 1,
            "roster": [
                sp.RosterSite(
                    name=name,
                    signing_key=self.credentials[name].signing_key,
                    sealing_key=self.credentials[name].sealing_key,
                    tls_key_digest=self.credentials[name].tls_key_digest,
                    weight=1.0,
                    batch_divisor=8.0,
                )
                for name in SITES
            ],
            "coordinator": sp.CoordinatorEntry(
                name="hub",
                signing_key=self.credentials["hub"].signing_key,
                tls_key_digest=self.credentials["hub"].tls_key_digest,
            ),
            "task": sp.TaskEntry(name="heart-disease", code_digest=b"\x01" * 32),
            "initial_weights_digest": model_digest(WEIGHTS),
            "parameter_count": PARAMETERS,
            "rounds": 5,
            "strategy": sp.Strategy(name="fedavg", server_learning_rate=1.0),
            "suite": sp.SuiteEntry(
                name=suite_name,
                parameters=parameters,
                library=params.library,
                bound=params.bound,
                key_maker="" if quorum else "anna",
            ),
            "dp": sp.DpPolicy(
                clipping_norm=1.0,
                noise_multiplier=2.0,
                sampling_rate=0.1,
                steps=3,
                learning_rate=0.1,
                delta=1e-5,
                metrics=sp.MetricsPolicy(loss_bound=4.0, noise_multiplier=4.0, scale=100.0),
            ),
            "minimum_cohort": 3,
            "threshold": 3 if quorum else 0,
            "colluders": 1 if quorum else 0,
            "collective_verification": quorum,
            "deadlines": sp.Deadlines(
                join_window=86400, upload=86400, acknowledge=86400, unseal=86400, verify=86400
            ),
            "release_to": "sites",
            "signed_at": int(NOW),
        }
        return sp.Manifest(**{**fields, **changes})


@cache
def consortium() -> Consortium:
    """The one of this process."""
    return Consortium()


class Round:
    """Round 1 of a study up to its end: every record in it, signed and valid."""

    def __init__(self, suite_name: str, parameters: str) -> None:
        world = consortium()
        self.world, self.quorum = world, suite_name == "quorum"
        self.signed_manifest = world.root.sign(Label.MANIFEST, world.manifest(suite_name, parameters))
        self.trust = verify_manifest(self.signed_manifest, world.anchor)
        self.params = self.trust.params
        self.transcript = transcript_start(self.trust.manifest.study, self.trust.digest)
        bound = {"manifest_digest": self.trust.digest, "round": 1}
        opening = rp.RoundRecord(
            **bound, model_digest=model_digest(WEIGHTS), previous_transcript=self.transcript, opened_at=1
        )
        self.opening = world.sign("hub", Label.ROUND_RECORD, opening)
        self.opened = record_digest(Label.ROUND_RECORD, self.opening)
        self.round_keys = {name: sealing_key(f"round {name}") for name in SITES}
        more = {} if self.quorum else {"shared_key_digest": bytes(32)}
        self.joins = {
            name: world.sign(
                name,
                Label.JOIN,
                rp.Join(
                    **bound,
                    **more,
                    round_record_digest=self.opened,
                    site=name,
                    library=self.params.library,
                    round_key=self.round_keys[name].public() if self.quorum else b"",
                ),
            )
            for name in SITES
        }
        plan = rp.PlanRecord(**bound, round_record_digest=self.opened, joins=list(self.joins.values()))
        self.signed_plan = world.sign("hub", Label.PLAN_RECORD, plan)
        self.plan = verify_plan(self.signed_plan, self.trust, self.opened, 1)
        self._bound = {**bound, "plan_digest": self.plan.digest}
        self._upload()
        self._close()
        if self.quorum:
            self._answer()

    def _upload(self) -> None:
        self.chunks, self.shares, self.sealed, self.commits = {}, {}, {}, {}
        key = None if self.quorum else study_key_side(self.params.suite).generate_key(self.params)
        self.key = key
        for place, name in enumerate(SITES):
            vector = np.full(LENGTH, place / 4, dtype=np.float32)
            vector[-1] = 1.0  # the check constant
            if self.quorum:
                side = one_time_key_side("quorum")
                one_time = side.generate_key(self.params, name.encode())
                with side.cipher(one_time, self.context, threads=1) as cipher:
                    self.chunks[name] = list(cipher.encrypt(vector))
                self.shares[name] = one_time.deal(self.plan.threshold, len(SITES))
                keys = [self.round_keys[one].public() for one in SITES]
                self.sealed[name] = self.dealing(name).seal(keys, self.shares[name])
            else:
                with study_key_side(self.params.suite).cipher(key, b"") as cipher:
                    self.chunks[name] = list(cipher.encrypt(vector))
            commit = rp.Commit(
                **self._bound,
                attempt=1,
                site=name,
                length=LENGTH,
                chunk_count=len(self.chunks[name]),
                ciphertext_root=self.root(self.chunks[name]),
                share_root=sealed_root(self.sealed[name]) if self.quorum else b"",
                ledger_sequence=1,
                ledger_head=b"\x02" * 32,
            )
            self.commits[name] = self.world.sign(name, Label.COMMIT, commit)

    @property
    def context(self) -> bytes:
        """What the public polynomials follow from."""
        return framed(Label.PUBLIC_POLYNOMIAL, self.trust.digest, self.plan.digest)

    @staticmethod
    def root(pieces) -> bytes:
        """Over leaf hashes."""
        return merkle.root([merkle.leaf_hash(one) for one in pieces])

    @staticmethod
    def prove(pieces, index):
        """An inclusion proof."""
        return merkle.prove([merkle.leaf_hash(one) for one in pieces], index)

    def dealing(self, name: str) -> Dealing:
        """What that dealer's shares are sealed with."""
        entry = self.trust.manifest.suite
        return Dealing(
            self.trust.digest,
            self.plan.digest,
            f"{entry.name}:{entry.parameters}",
            self.plan.threshold,
            self.plan.members,
            name,
            1,
            self.root(self.chunks[name]),
        )

    def _close(self) -> None:
        with suite(self.params.suite).chunk_adder(self.params) as adder:
            columns = zip(*self.chunks.values(), strict=True)
            self.sum = [adder.add(column, index, LENGTH) for index, column in enumerate(columns)]
        contributions = []
        for name in SITES:
            commit = rp.Commit.FromString(self.commits[name].payload)
            contributions.append(
                rp.Contribution(
                    site=name,
                    attempt=1,
                    ciphertext_root=commit.ciphertext_root,
                    share_root=commit.share_root,
                    commit=self.commits[name],
                )
            )
        record = rp.CloseRecord(
            **self._bound,
            contributions=contributions,
            sum_root=self.root(self.sum),
            sum_chunk_count=len(self.sum),
            previous_transcript=self.transcript,
            closed_at=2,
        )
        self.signed_close = self.world.sign("hub", Label.CLOSE_RECORD, record)
        self.close = verify_close(self.signed_close, self.trust, self.plan, self.transcript)
        self.close_digest = record_digest(Label.CLOSE_RECORD, self.signed_close)
        bound = {"manifest_digest": self.trust.digest, "round": 1}
        abort = rp.AbortRecord(**bound, reason="few", previous_transcript=self.transcript, aborted_at=2)
        self.signed_abort = self.world.sign("hub", Label.ABORT_RECORD, abort)
        report = rp.ModelReport(
            **bound, close_digest=self.close_digest, site="bert", model_digest=model_digest(WEIGHTS)
        )
        self.report = self.world.sign("bert", Label.MODEL_REPORT, report)

    def _answer(self) -> None:
        side, world = one_time_key_side("quorum"), self.world
        self.answers, self.answer_keys, self.vectors = {}, {}, {}
        keys = [self.round_keys[one].public() for one in SITES]
        for place, name in enumerate(SITES):
            dealt = [self.shares[dealer][place] for dealer in SITES]
            self.vectors[name] = side.add_shares(self.params, dealt)
            encrypted, sealed = self.answering(name).seal(keys, self.vectors[name])
            record = rp.Answer(
                **self._bound,
                close_digest=self.close_digest,
                site=name,
                encrypted_vector=encrypted,
                key_root=sealed_root(sealed),
            )
            self.answers[name] = world.sign(name, Label.ANSWER, record)
            self.answer_keys[name] = sealed
        attempts = [rp.Attempt(site=name, attempt=1) for name in SITES]
        record = rp.Acknowledgement(**self._bound, site="bert", opened=attempts[:3], unopenable=attempts[3:])
        self.acknowledgement = world.sign("bert", Label.ACKNOWLEDGEMENT, record)
        check = rp.SumCheck(
            manifest_digest=self.trust.digest,
            close_digest=self.close_digest,
            round=1,
            site="bert",
            right=[0],
            wrong=[1],
        )
        self.check = world.sign("bert", Label.SUM_CHECK, check)

    def answering(self, name: str) -> Answering:
        """What that member's answer is sealed with."""
        return Answering(self.trust.digest, self.plan.digest, self.close_digest, self.plan.members, name)

    def share_message(self, dealer: str, receiver: str) -> cp.ShareMessage:
        """As the coordinator hands it out."""
        place = SITES.index(receiver)
        sealed = self.sealed[dealer]
        return cp.ShareMessage(
            sealed=sealed[place],
            index=place,
            inclusion=self.prove(sealed, place),
            commit=self.commits[dealer],
        )

    def answer_message(self, member: str, receiver: str) -> cp.AnswerMessage:
        """Likewise."""
        place, sealed = SITES.index(receiver), self.answer_keys[member]
        return cp.AnswerMessage(
            record=self.answers[member], sealed_key=sealed[place], inclusion=self.prove(sealed, place)
        )

    def update_chunk(self, name: str, index: int) -> cp.DataChunk:
        """Likewise, for collective verification."""
        chunks = self.chunks[name]
        return cp.DataChunk(index=index, data=chunks[index], inclusion=self.prove(chunks, index), site=name)

    def relay(self, kind: int, receiver: str = "bert", sender: str = "anna") -> list[cp.RelayMessage]:
        """A sealed item for a site: the shared key, or the model."""
        content = (
            WEIGHTS.tobytes() if kind == rp.RelayItem.KIND_MODEL or self.key is None else self.key.reveal()
        )
        digest = model_digest(WEIGHTS) if kind == rp.RelayItem.KIND_MODEL else bytes(32)
        return list(
            seal_item(
                self.trust,
                signing_key(sender),
                str(self.world.identities[sender]),
                kind=kind,
                sender=sender,
                receiver=receiver,
                round_number=1 if kind == rp.RelayItem.KIND_MODEL else 0,
                content=content,
                content_digest=digest,
                transcript=self.transcript,
            )
        )


@cache
def study(parameters: str) -> Round:
    """By parameter set: ``q32``, ``q16``, ``seal-4096-48`` or ``flare-8192``. Made once."""
    return Round("quorum" if parameters.startswith("q") else "shared-key", parameters)
