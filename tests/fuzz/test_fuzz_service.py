"""Bytes that are no call at all: at the coordinator's port, inside TLS and outside of it. It serves the next caller,
and its memory stays bounded."""

import gc
import resource
import socket
import ssl
import struct
import time
from pathlib import Path
from random import Random

import grpc
import pytest
from fuzz_mutate import octets
from fuzz_studies import coordinator
from fuzz_target import HOSTILE, close_all
from fuzz_world import tls_key

from cipherward.coordinator.daemon.traffic import Traffic
from cipherward.crypto.pki import grpc_credentials, tls
from cipherward.errors import FormatError, NotFoundError
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1.coordinator_pb2_grpc import CoordinatorStub

pytestmark = pytest.mark.slow

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECTIONS = 150
GROWTH_MB = 400
"""Of this process, which is the coordinator and its callers: both have their buffers in it."""


EMPTIES = b"\x1a\x00" * (4 * 2**20)
"""8 MiB that would be 64 MiB or more as a message of 4 million empty elements."""


def credentials_of(hub):
    return grpc_credentials.channel_credentials(
        key_pem=tls.key_to_pem(tls_key("anna")),
        certificate_pem=tls.to_pem(hub.world.credentials["anna"].certificate),
        root_pem=hub.world.anchor.root_pem,
    )


def rss_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.fixture(scope="module")
def hub():
    yield coordinator()
    close_all()


@pytest.fixture(autouse=True)
def _serves_afterwards(hub):
    before = rss_mb()
    yield
    with grpc.secure_channel(hub.address, credentials_of(hub)) as channel:
        assert CoordinatorStub(channel).Hello(cp.HelloRequest(protocol=1), timeout=10).protocol == 1
    assert not hub.failures
    assert rss_mb() - before < GROWTH_MB


def dial(hub):
    host, port = hub.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


def drain(connection):
    """Whatever it says, until it hangs up or is silent."""
    connection.settimeout(0.05)
    try:
        while connection.recv(65536):
            continue
    except OSError:
        return


def member_tls(hub, tmp_path):
    context = ssl.create_default_context(cadata=hub.world.anchor.root_pem.decode())
    context.check_hostname = False
    certificate = tmp_path / "anna.pem"
    content = tls.to_pem(hub.world.credentials["anna"].certificate) + tls.key_to_pem(tls_key("anna"))
    certificate.write_bytes(content)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    return context


def frame(kind, flags, stream, body, size=None):
    size = len(body) if size is None else size
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + body


def hostile_frames(rng):
    """HTTP/2 that no client speaks: sizes that lie, header blocks without end, floods, streams that never were."""
    some = [
        frame(0, 0, 1, rng.randbytes(50)),
        frame(1, 4, 1, rng.randbytes(rng.randrange(200))),
        frame(1, 0, 1, b"\x82" * 4000) + frame(9, 0, 1, b"\x40\x01a\x7f\xff\xff\xff\xff\x0f") * 50,
        frame(1, 4, 1, b"\x3f\xe1\xff\xff\xff\x0f" + b"\x82\x86\x84" * 100),
        frame(4, 0, 0, struct.pack(">HI", rng.randrange(9), rng.choice((0, 1, 2**31, 2**32 - 1)))) * 200,
        frame(6, 0, 0, bytes(8)) * 300,
        frame(8, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,
        frame(3, 0, 1, bytes(4)) * 100,
        frame(2, 0, 3, rng.randbytes(5)),
        frame(5, 4, 1, bytes(8)),
        frame(7, 0, 0, rng.randbytes(8)),
        frame(rng.randrange(256), rng.randrange(256), rng.randrange(2**32), rng.randbytes(30)),
        frame(0, 0, 1, b"x", size=2**24 - 1),
    ]
    return b"".join(rng.choice(some) for _ in range(rng.randrange(1, 8)))


def test_bytes_that_are_no_tls(hub):
    rng = Random(1)
    hello = b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03" + rng.randbytes(240)
    for number in range(CONNECTIONS):
        with dial(hub) as connection:
            data = octets(rng.choice([hello, PREFACE, b"GET / HTTP/1.1\r\n\r\n", *HOSTILE]), rng)
            try:
                connection.sendall(data)
                if number % 10 == 0:
                    drain(connection)
            except OSError:
                continue  # it hung up first


def test_bytes_that_are_no_http(hub, tmp_path):
    rng, context = Random(2), member_tls(hub, tmp_path)
    for number in range(CONNECTIONS):
        data = PREFACE + frame(4, 0, 0, b"") + hostile_frames(rng)
        if number % 3 == 0:
            data = octets(data, rng)
        try:
            with context.wrap_socket(dial(hub)) as connection:
                connection.sendall(data)
                drain(connection)
        except OSError:
            continue


def test_messages_as_large_as_the_transport_takes_them(hub):
    """Of a few bytes each and in great numbers inside: what they would take in memory once parsed is never made."""
    with grpc.secure_channel(hub.address, credentials_of(hub)) as channel:
        for rpc in ("Hello", "PostAnswer", "PostSumCheck", "GetUpdateChunks", "Upload"):
            calls = [
                channel.stream_stream(f"/cipherward.v1.Coordinator/{rpc}")(iter([EMPTIES]), timeout=20)
                for _ in range(4)
            ]
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    time.sleep(0.2)


def test_what_was_refused_is_not_kept_until_the_collector_comes(hub):
    """An error's frames hold the message that it is about, and were part of a cycle."""
    gc.disable()
    try:
        with grpc.secure_channel(hub.address, credentials_of(hub)) as channel:
            send_large(channel, 8)
            before = rss_mb()
            send_large(channel, 60)
        assert rss_mb() - before < 200  # 480 MB were sent
    finally:
        gc.enable()


def send_large(channel, count):
    for _ in range(count):
        with pytest.raises(grpc.RpcError):
            list(channel.stream_stream("/cipherward.v1.Coordinator/Hello")(iter([EMPTIES]), timeout=20))


def test_numbers_and_names_that_no_database_can_write_are_not_asked_for(hub):
    """On PostgreSQL each of these was an outage of the database, told by one site's call; a round's traffic under such
    a number could not be stored, nor anybody's after it."""
    largest = 2**32 - 1
    for rpc, request in (
        ("GetRelay", cp.GetRelayRequest(study="done-q0", kind=1, sender="a\0b")),
        ("GetRelay", cp.GetRelayRequest(study="done-q0", kind=largest, sender="anna")),
        ("GetRecord", cp.GetRecordRequest(study="done-q0", round=largest, kind=cp.RECORD_KIND_PLAN)),
    ):
        with pytest.raises(NotFoundError):
            hub.call(rpc, "anna", [request.SerializeToString()])
    asked = cp.RequestModelRequest(study="done-q0", round=largest)
    with pytest.raises(FormatError, match="no model after round"):
        hub.call("RequestModel", "anna", [asked.SerializeToString()])
    reports = cp.GetRecordRequest(study="done-q0", round=largest)
    assert hub.call("GetModelReports", "anna", [reports.SerializeToString()]) == []
    traffic = Traffic(None)
    traffic.up("done-q0", largest, reports)
    traffic.down("done-q0", largest, reports)
    assert traffic.pending("done-q0", largest) == (0, 0)
    traffic.up("done-q0", 1, reports)
    assert traffic.pending("done-q0", 1)[0] > 0
