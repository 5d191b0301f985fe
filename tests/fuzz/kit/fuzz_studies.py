"""Studies in every phase at the coordinator of this process; what led them there is the corpus."""

from __future__ import annotations

import os
import time
from functools import cache

from fuzz_coordinator import Coordinator
from fuzz_mutate import frames, unframed
from fuzz_records import raw
from fuzz_target import CLOSING
from fuzz_world import LENGTH, SITES, WEIGHTS, sealing_key, signing_key, study

from cipherward.coordinator.api.dispatch import RPCS
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import verify_manifest
from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.quorum_records import (
    ENCRYPTED_VECTOR_BYTES,
    SEALED_KEY_BYTES,
    SEALED_SHARE_BYTES,
    sealed_root,
)
from cipherward.crypto.signing import record_digest
from cipherward.errors import CipherwardError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.daemon.relay import seal_item

COPIES = 2
"""Of each study: a mutation that is accepted moves its study on."""
MODEL = b"\x07" * 32


class Live:
    """A study at the coordinator, led to the phase it is wanted in; every request on the way is a seed."""

    def __init__(self, hub: Coordinator, parameters: str, name: str) -> None:
        self.hub, self.name = hub, name
        self.quorum = parameters.startswith("q")
        self.round = study(parameters)
        made = hub.world.manifest("quorum" if self.quorum else "shared-key", parameters, study=name)
        made.minimum_cohort = 4
        self.signed = hub.world.root.sign(Label.MANIFEST, made)
        self.trust = verify_manifest(self.signed, hub.world.anchor)
        self.bound = {"manifest_digest": self.trust.digest, "round": 1}

    def start_messages(self):
        order = self.order(sp.OperatorCommand.ACTION_START)
        content = WEIGHTS.tobytes()
        return [
            cp.StartStudyMessage(order=order, manifest=self.signed),
            cp.StartStudyMessage(weights=content[:5000]),
            cp.StartStudyMessage(weights=content[5000:]),
        ]

    def order(self, action):
        command = sp.OperatorCommand(
            action=action, manifest_digest=self.trust.digest, reason="so", issued_at=int(time.time())
        )
        world = self.hub.world
        signed = world.sign("olga", Label.OPERATOR_COMMAND, command)
        return sp.OperatorOrder(command=signed, credential=world.credentials["olga"].signed)

    def start(self):
        self.hub.ask("StartStudy", "olga", *self.start_messages())
        if not self.quorum:
            for receiver in SITES:
                self.hub.ask("PutRelay", "anna", *self.key_item(receiver))
        return self

    def key_item(self, receiver: str):
        return self._item(rp.RelayItem.KIND_SHARED_KEY, receiver, b"k" * 100, bytes(32), 0)

    def model_item(self, receiver: str):
        return self._item(rp.RelayItem.KIND_MODEL, receiver, WEIGHTS.tobytes(), MODEL, 1)

    def _item(self, kind, receiver, content, digest, number):
        return seal_item(
            self.trust,
            signing_key("anna"),
            str(self.hub.world.identities["anna"]),
            kind=kind,
            sender="anna",
            receiver=receiver,
            round_number=number,
            content=content,
            content_digest=digest,
        )

    def record(self, kind) -> Signed:
        request = cp.GetRecordRequest(study=self.name, round=1, kind=kind)
        end = time.monotonic() + 20
        while True:
            try:
                return Signed.FromString(self.hub.ask("GetRecord", "anna", request, seed=False)[0])
            except CipherwardError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def post(self, rpc, name, label, message, kind=cp.PostRequest, *, send=True, **more):
        request = kind(study=self.name, record=self.hub.world.sign(name, label, message), **more)
        if send:
            self.hub.ask(rpc, name, request, seed=name == "anna")
        else:
            self.hub.seeds[rpc].append(frames([raw(request)]))

    def join(self, *, send=True):
        opened = record_digest(Label.ROUND_RECORD, self.record(cp.RECORD_KIND_ROUND))
        for name in SITES if send else SITES[:1]:
            join = rp.Join(
                **self.bound,
                round_record_digest=opened,
                site=name,
                round_key=sealing_key(f"{self.name} {name}").public() if self.quorum else b"",
                shared_key_digest=b"" if self.quorum else bytes(32),
                library=self.trust.params.library,
            )
            self.post("PostJoin", name, Label.JOIN, join, send=send)
        return self

    def plan(self):
        signed = self.record(cp.RECORD_KIND_PLAN)
        self.bound["plan_digest"] = record_digest(Label.PLAN_RECORD, signed)
        self.shares = {name: [os.urandom(SEALED_SHARE_BYTES) for _ in SITES] for name in SITES}
        return self

    def upload_messages(self, name, attempt=1):
        header = cp.UploadHeader(
            study=self.name, round=1, attempt=attempt, plan_digest=self.bound["plan_digest"]
        )
        messages = [cp.UploadMessage(header=header)]
        for index, chunk in enumerate(self.round.chunks[name]):
            messages.append(cp.UploadMessage(index=index, data=chunk, leaf_hash=leaf_hash(chunk)))
        for index, share in enumerate(self.shares[name] if self.quorum else []):
            messages.append(cp.UploadMessage(share=cp.ShareMessage(sealed=share, index=index)))
        return messages

    def upload(self):
        for name in SITES:
            self.hub.ask("Upload", name, *self.upload_messages(name), seed=name == "anna")
        return self

    def commit(self, *, send=True):
        for name in SITES if send else SITES[:1]:
            chunks = self.round.chunks[name]
            commit = rp.Commit(
                **self.bound,
                attempt=1,
                site=name,
                length=LENGTH,
                chunk_count=len(chunks),
                ciphertext_root=root([leaf_hash(one) for one in chunks]),
                share_root=sealed_root(self.shares[name]) if self.quorum else b"",
                ledger_sequence=1,
                ledger_head=bytes(32),
            )
            self.post("PostCommit", name, Label.COMMIT, commit, send=send)
        return self

    def acknowledge(self, *, send=True):
        attempts = [rp.Attempt(site=name, attempt=1) for name in SITES]
        for name in SITES if send else SITES[:1]:
            record = rp.Acknowledgement(**self.bound, site=name, opened=attempts)
            self.post("PostAcknowledgement", name, Label.ACKNOWLEDGEMENT, record, send=send)
        return self

    def close(self):
        self.close_digest = record_digest(Label.CLOSE_RECORD, self.record(cp.RECORD_KIND_CLOSE))
        return self

    def answer(self, *, send=True):
        for name in SITES if send else SITES[:1]:
            keys = [os.urandom(SEALED_KEY_BYTES) for _ in SITES]
            record = rp.Answer(
                **self.bound,
                close_digest=self.close_digest,
                site=name,
                encrypted_vector=os.urandom(ENCRYPTED_VECTOR_BYTES),
                key_root=sealed_root(keys),
            )
            self.post(
                "PostAnswer", name, Label.ANSWER, record, cp.PostAnswerRequest, send=send, sealed_keys=keys
            )
        return self

    def check_and_report(self):
        bound = {"manifest_digest": self.trust.digest, "round": 1, "close_digest": self.close_digest}
        if self.quorum:
            check = rp.SumCheck(**bound, site="anna", right=[0, 1])
            self.post("PostSumCheck", "anna", Label.SUM_CHECK, check)
        report = rp.ModelReport(**bound, site="anna", model_digest=MODEL)
        self.post("PostModelReport", "anna", Label.MODEL_REPORT, report)
        return self

    def questions(self):
        """All that a site can ask about a round."""
        seeds = self.hub.seeds
        for kind in range(6):
            seeds["GetRecord"].append(frames([raw(cp.GetRecordRequest(study=self.name, round=1, kind=kind))]))
        plain = frames([raw(cp.GetRecordRequest(study=self.name, round=1))])
        for rpc in ("GetShares", "GetAnswers", "GetSumChecks", "GetModelReports"):
            seeds[rpc].append(plain)
        seeds["GetSum"].append(frames([raw(cp.GetSumRequest(study=self.name, round=1, first_index=1))]))
        wanted = cp.GetUpdateChunksRequest(study=self.name, round=1, indices=[0, 1])
        seeds["GetUpdateChunks"].append(frames([raw(wanted)]))
        if "plan_digest" in self.bound:
            seeds["GetUploadState"].append(frames([raw(self.upload_messages("anna")[0].header)]))
        for kind in (1, 2):
            asked = cp.GetRelayRequest(study=self.name, kind=kind, sender="anna")
            seeds["GetRelay"].append(frames([raw(asked)]))
        seeds["RequestModel"].append(frames([raw(cp.RequestModelRequest(study=self.name, round=0))]))
        for rpc in ("GetManifest", "GetInitialWeights"):
            seeds[rpc].append(frames([raw(cp.GetManifestRequest(study=self.name, version=1))]))
        for rpc in ("GetStudyStatus", "WatchStudy"):
            seeds[rpc].append(frames([raw(cp.StudyStatusRequest(study=self.name))]))
        return self


@cache
def coordinator() -> Coordinator:
    """The one of this process, with studies in every phase."""
    hub = Coordinator()
    CLOSING.append(coordinator.cache_clear)
    for copy in range(COPIES):
        for short, parameters in (("q", "q32"), ("s", "seal-4096-48")):

            def live(phase, short=short, parameters=parameters, copy=copy):
                return Live(hub, parameters, f"{phase}-{short}{copy}").start()

            live("open").join(send=False).questions()
            uploading = live("upload").join().plan().questions()
            hub.seeds["Upload"] += [
                frames([raw(one) for one in uploading.upload_messages("anna", attempt)]) for attempt in (1, 9)
            ]
            live("commit").join().plan().upload().commit(send=False)
            closed = live("done").join().plan().upload().commit()
            if short == "q":
                live("ack").join().plan().upload().commit().questions().acknowledge(send=False)
                closed.acknowledge()
                live("answer").join().plan().upload().commit().acknowledge().close().questions().answer(
                    send=False
                )
                closed.close().answer()
            closed.close().check_and_report().questions()
            wanted = frames([raw(cp.RequestModelRequest(study=closed.name, round=0))])
            hub.call("RequestModel", "bert", unframed(wanted))
            hub.seeds["PutRelay"].append(frames([raw(one) for one in closed.model_item("bert")]))
            # Only described, never started; and one that may be aborted.
            other = Live(hub, parameters, f"never-{short}{copy}")
            hub.seeds["StartStudy"].append(frames([raw(one) for one in other.start_messages()[:2]]))
            hub.seeds["AbortStudy"].append(
                frames([raw(live("abort").order(sp.OperatorCommand.ACTION_ABORT))])
            )
    hello = cp.HelloRequest(
        protocol=1, version="1", libraries=["tenseal 0.3.16"], status_list_number=1, now=1
    )
    for rpc, request in (("Hello", hello), ("GetStatusList", cp.GetStatusListRequest())):
        hub.seeds[rpc].append(frames([raw(request)]))
    hub.seeds["WatchWork"].append(frames([raw(cp.WatchWorkRequest())]))
    for rpc in RPCS:
        if rpc.startswith("Health."):
            hub.seeds[rpc] += [frames([b""]), frames([b"\x0a\x19cipherward.v1.Coordinator"])]
    return hub
