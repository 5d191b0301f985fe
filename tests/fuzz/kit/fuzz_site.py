"""A site's side: real agents' studies in the middle of a round (tests/attacks/kit), which read what a coordinator or a
peer says; and the client itself, whose server answers with raw bytes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
import structlog
from fuzz_mutate import Envelope, Mutator, frames, in_frames, octets, unframed
from fuzz_records import message, raw
from fuzz_target import CLOSING, target

from cipherward.coordinator.api.dispatch import RPCS
from cipherward.crypto.labels import Label
from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium
from cipherward.crypto.signing import record_digest
from cipherward.errors import CipherwardError, UnavailableError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import identity_pb2 as ip
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import Signed
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.admission import _versions
from cipherward.site_agent.daemon.agent import Agent
from cipherward.site_agent.daemon.connection import handshake
from cipherward.site_agent.daemon.quorum.acknowledging import open_shares
from cipherward.site_agent.daemon.quorum.answering import combined_keys
from cipherward.site_agent.daemon.quorum.checking import Checking
from cipherward.site_agent.daemon.quorum.secrets import RoundSecret
from cipherward.site_agent.daemon.resync import Resync
from cipherward.site_agent.daemon.revocation import refresh_status_list
from cipherward.site_agent.daemon.rollback import check_own_commit
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.daemon.sums import StoredSum, Sums

KIT = Path(__file__).parents[2] / "attacks" / "kit"


class Says:
    """A coordinator that says what an input says: each call gets the next messages of it. What it is told, it takes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def _next(self, kind):
        if not self.messages:
            raise UnavailableError("it says nothing more")
        return message(kind, self.messages.pop(0))

    def _rest(self, kind, most=None):
        found, self.messages = self.messages, []
        return (message(kind, one) for one in found[:most])

    def hello(self, request):
        return self._next(cp.HelloReply)

    def status_list(self):
        return self._next(Signed)

    def manifest(self, study, version=0):
        return self._next(Signed)

    def initial_weights(self, study, version, size):
        return (self.messages.pop(0) if self.messages else b"").ljust(size, b"\x00")[:size]

    def record(self, study, number, kind):
        return self._next(Signed)

    def shares(self, study, number, most):
        return self._rest(cp.ShareMessage, most)

    def answers(self, study, number, most):
        return self._rest(cp.AnswerMessage, most)

    def update_chunks(self, study, number, indices, *, without_own):
        return self._rest(cp.DataChunk)

    def sum_checks(self, study, number, most):
        return self._rest(Signed, most)

    def sum_chunks(self, study, number, first):
        return self._rest(cp.DataChunk)

    def model_reports(self, study, number, most):
        return self._rest(Signed, most)

    def get_relay(self, study, kind, sender=""):
        return self._rest(cp.RelayMessage)

    def request_model(self, study, number):
        """Taken."""

    post_sum_check = post_model_report = cancel_streams = lambda *_: None


class World:
    """Three hospitals that have answered round 1, and a fourth voice that says anything to the first of them."""

    def __init__(self) -> None:
        sys.path.insert(0, str(KIT))
        import kit_hospitals as kit

        structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
        base = Path("/dev/shm")
        self._folder = Path(
            tempfile.mkdtemp(prefix="cipherward-fuzz-site-", dir=base if os.access(base, os.W_OK) else None)
        )
        CLOSING.append(self.close)
        create_consortium(self._folder / "consortium", "heart", kit.PASSPHRASE, time.time())
        consortium = ConsortiumFolder(self._folder / "consortium")
        enrolled = kit.Enrolled(self._folder, consortium, consortium.unlock(kit.PASSPHRASE))
        self.hospitals = kit.Hospitals(enrolled, self._folder / "world", 3)
        self.hospitals.to_answers(1, kit.updates(self.hospitals.names, 1))
        self.name, *_ = self.hospitals.names
        self.agent = self.hospitals.agents[self.name]
        self.link, self.trust = self.agent.link, self.hospitals.trust
        self.closed = self.agent.study.closing(1)
        self.says = Says()
        self.study = Study(self.agent.site, self.says, kit.STUDY)
        self.secret = self.agent.protection._secrets.of(1)
        keys = {str(one.identity): one.signing_key for one in enrolled.members.values()}
        self.keys = {**keys, "root": enrolled.root._signing}
        self.total = self.hospitals.total(1, self.hospitals.names)
        self.stored = StoredSum(kit.LENGTH, [leaf_hash(one) for one in self.total], lambda: iter(self.total))
        self.kit = kit

    def close(self) -> None:
        self.hospitals.close_all()
        site.cache_clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def sign(self, name, label, record):
        return self.hospitals.sign(name, label, record)


def _drop(_logger, _name, _event):
    raise structlog.DropEvent


@cache
def site() -> World:
    """The one of this process."""
    return World()


def _says(name, kind, covers, *, inside=None, weight=4):
    """Registers a target: ``make`` gives what to do with the voice, and what it says when it is honest."""

    def register(make):
        @target(f"site {name}", covers=covers, weight=weight, slow=True)
        def made():
            world = site()
            do, honest = make(world)

            def run(data):
                world.says.messages = unframed(data)
                do()

            mutator = Mutator(world.keys, inside)
            return run, [frames([raw(one) for one in honest])], in_frames(mutator.of(kind))

    return register


@_says("opens shares", cp.ShareMessage, ["reply ShareMessage", "label SEAL_SHARE"])
def _shares(w):
    honest = w.link.shares(w.kit.STUDY, 1, 3)
    return lambda: open_shares(w.study, 1, RoundSecret(1, w.secret.key)), honest


@_says("opens answers", cp.AnswerMessage, ["reply AnswerMessage", "label SEAL_ANSWER"], weight=3)
def _answers(w):
    def do():
        for _ in islice(combined_keys(w.study, 1, w.closed, w.secret), 5):
            pass

    return do, w.link.answers(w.kit.STUDY, 1, 3)


@_says("adds up chunks", cp.DataChunk, ["reply DataChunk"])
def _chunks(w):
    def do():
        Checking(w.study)._check(1, w.closed, w.stored, range(len(w.total)))

    return do, list(w.link.update_chunks(w.kit.STUDY, 1, range(len(w.total)), without_own=True))


@_says("reads sum checks", Envelope(Label.SUM_CHECK, rp.SumCheck), ["label SUM_CHECK", "reply Signed"])
def _checks(w):
    made = [
        w.sign(
            name,
            Label.SUM_CHECK,
            rp.SumCheck(
                manifest_digest=w.trust.digest,
                close_digest=w.closed.digest,
                round=1,
                site=name,
                right=[0, 1],
            ),
        )
        for name in w.hospitals.names
    ]
    return lambda: Checking(w.study)._coverage(1, w.closed, len(w.total)), made


@_says("fetches a sum", cp.DataChunk, ["reply DataChunk"])
def _sum(w):
    def do():
        params = w.trust.params
        sizes = [params.sum_chunk_bytes(index, w.kit.LENGTH) for index in range(len(w.total))]
        for index, chunk in enumerate(Sums(w.study)._fetch(1, w.closed, sizes)):
            params.check_sum_chunk(chunk, index, w.kit.LENGTH)

    return do, [cp.DataChunk(index=index, data=one) for index, one in enumerate(w.total)]


@_says("reads a closing", Envelope(Label.CLOSE_RECORD, rp.CloseRecord), ["label CLOSE_RECORD"])
def _closing(w):
    return lambda: w.study.closing(1), [w.hospitals.hub.records[1, cp.RECORD_KIND_CLOSE]]


@_says("reads reports", Envelope(Label.MODEL_REPORT, rp.ModelReport), ["label MODEL_REPORT"])
def _reports(w):
    from types import SimpleNamespace

    closing = w.hospitals.hub.records[1, cp.RECORD_KIND_CLOSE]
    entry = SimpleNamespace(round=1, cohort=w.closed.cohort, closing_record=raw(closing))
    made = [
        w.sign(
            name,
            Label.MODEL_REPORT,
            rp.ModelReport(
                manifest_digest=w.trust.digest,
                close_digest=record_digest(Label.CLOSE_RECORD, closing),
                round=1,
                site=name,
                model_digest=bytes(32),
            ),
        )
        for name in w.hospitals.names
    ]
    return lambda: Resync(w.study, w.agent.site.clock).agreed(entry), made


@_says("reads its own commit", Envelope(Label.COMMIT, rp.Commit), ["label COMMIT"])
def _own(w):
    return lambda: check_own_commit(w.study, 1), [w.link.committed(1)[0]]


@_says("reads manifests", Envelope(Label.MANIFEST, sp.Manifest), ["label MANIFEST"])
def _manifests(w):
    return lambda: _versions(w.agent.site, w.says, w.kit.STUDY), w.hospitals.hub.manifests


STATUS = {("HelloReply", "status_list"): Envelope(Label.STATUS_LIST, ip.StatusList)}


def _hello_reply(w, snapshots=()):
    status = w.agent.site.member.status.newest.signed
    return cp.HelloReply(
        protocol=1,
        version="0.1.0",
        libraries=["tenseal"],
        status_list=status,
        now=int(time.time()),
        studies=snapshots,
    )


@_says("shakes hands", cp.HelloReply, ["reply HelloReply", "label STATUS_LIST"], inside=STATUS)
def _hands(w):
    return lambda: handshake(w.agent.site, w.says), [_hello_reply(w)]


@_says("renews its status list", Envelope(Label.STATUS_LIST, ip.StatusList), ["label STATUS_LIST"])
def _status(w):
    return lambda: refresh_status_list(w.agent.site, w.says), [w.agent.site.member.status.newest.signed]


@target("site hears of studies", covers=["reply StudySnapshot", "reply HelloReply"], weight=3, slow=True)
def _snapshots():
    """An agent that is told where studies stand, then manifests, weights and records as it asks for them. Its loops'
    first look at a snapshot runs here, not in threads of their own."""
    w = site()
    sys.path.insert(0, str(KIT))
    from unittest import mock

    from cipherward.site_agent.daemon.study_loop import StudyLoop

    plain = cp.StudySnapshot(
        study=w.kit.STUDY,
        state=cp.STUDY_STATE_RUNNING,
        manifest_digest=w.trust.digest,
        manifest_version=1,
        round=1,
        phase=cp.PHASE_OPEN,
        close_digest=w.closed.digest,
    )
    seeds = []
    for phase in range(9):
        one = cp.StudySnapshot()
        one.CopyFrom(plain)
        one.phase = phase
        more = [raw(w.link.committed(1)[0]), raw(w.hospitals.hub.manifests[0])]
        seeds.append(frames([raw(_hello_reply(w, [one])), *more]))
    other = cp.StudySnapshot(study="other", state=1, manifest_version=1, manifest_digest=bytes(32), round=1)
    seeds.append(frames([raw(_hello_reply(w, [other])), raw(w.hospitals.hub.manifests[0])]))

    def run(data):
        w.says.messages = unframed(data)
        reply = message(cp.HelloReply, w.says.messages.pop(0) if w.says.messages else b"")
        agent = Agent(w.agent.site, w.says, once_finished=False)
        with mock.patch.object(StudyLoop, "start", lambda self: None):
            agent._hello(reply)
        for snapshot in reply.studies:
            loop = agent._loops.get(snapshot.study)
            # Training and answering have states of their own, which this agent must not move.
            if loop is not None and snapshot.phase not in (cp.PHASE_OPEN, cp.PHASE_UNSEAL, cp.PHASE_RELEASE):
                with suppress(CipherwardError):
                    loop._act(snapshot)

    mutator = Mutator(w.keys, STATUS)
    return run, seeds, in_frames(mutator.of(cp.HelloReply))


# The client, by a real connection


class _Raw(grpc.GenericRpcHandler):
    """Answers every call with what it was told to, in the bytes it was told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.refusal = b""

    def service(self, details):
        def serve(requests, context):
            if self.refusal:
                context.set_trailing_metadata((("cw-error-bin", self.refusal),))
                context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
                return
            yield from self.messages

        return grpc.stream_stream_rpc_method_handler(serve)


def _calls(client: CoordinatorClient):
    header, post = cp.UploadHeader(study="a"), Signed()
    each = lambda messages: list(islice(messages, 50))  # noqa: E731
    return [
        lambda: client.hello(cp.HelloRequest(protocol=1)),
        client.status_list,
        lambda: each(client.watch()),
        lambda: client.manifest("a"),
        lambda: np.frombuffer(client.initial_weights("a", 1, 8), dtype="<f4"),
        lambda: client.record("a", 1, cp.RECORD_KIND_PLAN),
        lambda: client.post_join("a", post),
        lambda: client.upload_state(header),
        lambda: client.upload([cp.UploadMessage(header=header)]),
        lambda: client.post_commit("a", post),
        lambda: each(client.shares("a", 1, 20)),
        lambda: client.post_acknowledgement("a", post),
        lambda: client.post_answer(cp.PostAnswerRequest(study="a")),
        lambda: each(client.answers("a", 1, 20)),
        lambda: each(client.update_chunks("a", 1, [0], without_own=False)),
        lambda: client.post_sum_check("a", post),
        lambda: each(client.sum_checks("a", 1, 20)),
        lambda: each(client.sum_chunks("a", 1, 0)),
        lambda: client.post_model_report("a", post),
        lambda: each(client.model_reports("a", 1, 20)),
        lambda: client.put_relay([cp.RelayMessage(study="a")]),
        lambda: each(client.get_relay("a", 1)),
        lambda: client.request_model("a", 1),
    ]


_REPLIES = sorted({f"reply {method.output_type.name}" for method in RPCS.values()})


@target("site's client", covers=[one for one in _REPLIES if "Health" not in one], weight=3, slow=True)
def _client():
    """The first byte says which call is made, the second whether it is refused; the rest is what comes back."""
    from fuzz_records import study

    handler = _Raw()
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def stop():
        channel.close()
        server.stop(0).wait(5)

    CLOSING.append(stop)
    calls = _calls(CoordinatorClient(channel))
    streams = {2, 4, 10, 13, 14, 16, 17, 19, 21}

    def run(data):
        which, refused = ([*data[:2], 0, 0])[:2]
        # A second answer where there is one only is never read, so that the call lasts until its deadline.
        most = None if which % len(calls) in streams else 1
        handler.messages = [] if refused == 1 else unframed(data[2:])[:most]
        handler.refusal = data[6:4000] if refused == 1 else b""
        calls[which % len(calls)]()

    s = study("q32")
    replies = [
        cp.HelloReply(protocol=1, status_list=Signed(payload=b"x"), studies=[cp.StudySnapshot(study="a")]),
        s.signed_plan,
        cp.StudySnapshot(study="a", round=1),
        cp.DataChunk(index=1, data=b"12345678"),
        cp.UploadState(chunks_stored=1),
        cp.PostReply(),
        s.share_message("anna", "bert"),
        s.answer_message("anna", "bert"),
        cp.RelayMessage(study="a", item=s.report),
    ]
    body = [frames([raw(one)]) for one in replies] + [frames([raw(replies[3])] * 3), frames([])]
    seeds = [
        bytes([which, refused]) + one for which in range(len(calls)) for refused in (0, 1) for one in body
    ]

    def mutate(data, rng):
        head, rest = data[:2], data[2:]
        if rng.random() < 0.3:
            head = bytes([rng.randrange(len(calls)), rng.randrange(3)])
        return head + in_frames(lambda one, r: octets(one, r))(rest, rng)

    return run, seeds, mutate
