"""Targets that give raw bytes to the dispatcher's handlers, as gRPC does once TLS has said who calls, and to the
service over a real connection."""

from __future__ import annotations

from itertools import islice

import grpc
from fuzz_coordinator import CALL_SECONDS
from fuzz_mutate import Envelope, Mutator, in_frames, unframed
from fuzz_records import void
from fuzz_studies import coordinator
from fuzz_target import CLOSING, target
from fuzz_world import tls_key

from cipherward.coordinator.api.dispatch import RPCS
from cipherward.crypto.labels import Label
from cipherward.crypto.pki import grpc_credentials, tls
from cipherward.errors import WireError, from_wire
from cipherward.proto.v1 import identity_pb2 as ip
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1 import study_pb2 as sp
from cipherward.proto.v1.common_pb2 import ErrorDetail

_POSTED = {
    "PostJoin": (Label.JOIN, rp.Join),
    "PostCommit": (Label.COMMIT, rp.Commit),
    "PostAcknowledgement": (Label.ACKNOWLEDGEMENT, rp.Acknowledgement),
    "PostSumCheck": (Label.SUM_CHECK, rp.SumCheck),
    "PostModelReport": (Label.MODEL_REPORT, rp.ModelReport),
}
_BY_OPERATORS = {"StartStudy", "AbortStudy", "GetStudyStatus", "WatchStudy"}
_ENDLESS = {"WatchWork", "WatchStudy", "Health.Watch"}


def _rpc_targets(rpc, method):
    weight = 6 if rpc.startswith(("Post", "Upload", "Put", "Start")) else 3

    @target(f"rpc {rpc}", covers=[f"rpc {rpc}"], weight=weight, slow=True)
    def make():
        hub = coordinator()
        keys = dict(hub.world.keys)
        # Nobody else has the root's key: a manifest or credential that it did not sign stays a forgery here.
        del keys["root"]
        inside = {("OperatorOrder", "credential"): Envelope(Label.CREDENTIAL, ip.Credential)}
        inside["StartStudyMessage", "manifest"] = Envelope(Label.MANIFEST, sp.Manifest)
        if rpc in _POSTED:
            inside["PostRequest", "record"] = Envelope(*_POSTED[rpc])
        mutator = Mutator(keys, inside)
        caller = "olga" if rpc in _BY_OPERATORS else "anna"
        most = 1 if rpc in _ENDLESS else 64

        mutate = in_frames(lambda one, rng: mutator.message(one, method.input_type, rng))
        return lambda data: void(hub.call(rpc, caller, unframed(data), most)), hub.seeds[rpc], mutate


@target("rpc over mTLS", covers=["transport"], weight=6, slow=True)
def _transport():
    """The same by a real connection: the first byte says which RPC. Whatever comes, the service tells a site why it
    refuses, and knows the next call."""
    hub = coordinator()
    names = list(RPCS)
    pem = {name: tls.to_pem(hub.world.credentials[name].certificate) for name in ("anna", "olga")}
    channels = {
        name: grpc.secure_channel(
            hub.address,
            grpc_credentials.channel_credentials(
                key_pem=tls.key_to_pem(tls_key(name)),
                certificate_pem=pem[name],
                root_pem=hub.world.anchor.root_pem,
            ),
        )
        for name in pem
    }
    CLOSING.extend(channel.close for channel in channels.values())

    def run(data):
        name = names[(data[:1] or b"\x00")[0] % len(names)]
        method = RPCS[name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel = channels["olga" if name in _BY_OPERATORS else "anna"]
        call = channel.stream_stream(path)(iter(unframed(data[1:])), timeout=CALL_SECONDS)
        try:
            for _ in islice(call, 1 if name in _ENDLESS else 64):
                pass
            call.cancel()
        except grpc.RpcError as error:
            told = [value for key, value in error.trailing_metadata() or () if key == "cw-error-bin"]
            if hub.failures:
                raise hub.failures.pop() from error
            if not told:
                raise ValueError(
                    f"{name} ended without a reason: {error.code()} {error.details()}"
                ) from error
            detail = ErrorDetail.FromString(told[0])
            raise from_wire(WireError(detail.code, detail.what, detail.why, detail.fix)) from error
        if hub.failures:
            raise hub.failures.pop()

    seeds = []
    for index, name in enumerate(names):
        seeds += [bytes([index]) + one for one in hub.seeds[name][:4]]

    def mutate(data, rng):
        head, rest = data[:1], data[1:]
        if not head or rng.random() < 0.1:
            head = bytes([rng.randrange(len(names))])
        kind = RPCS[names[head[0] % len(names)]].input_type
        mutator = Mutator(hub.world.keys)
        return head + in_frames(lambda one, other: mutator.message(one, kind, other))(rest, rng)

    return run, seeds, mutate


for _name, _method in RPCS.items():
    _rpc_targets(_name, _method)
