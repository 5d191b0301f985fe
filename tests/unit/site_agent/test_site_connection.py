"""The handshake, the errors of calls, readiness, and what the daemon must not load."""

import socket
import subprocess
import sys
import time

import grpc
import pytest

from cipherward.crypto.labels import Label
from cipherward.errors import (
    IdentityError,
    LateError,
    ProtocolError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from cipherward.ids import Identity, Role
from cipherward.proto.v1.common_pb2 import ErrorDetail
from cipherward.proto.v1.coordinator_pb2 import HelloReply
from cipherward.proto.v1.identity_pb2 import StatusList
from cipherward.site_agent.client.channel import check_address, open_channel
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.client.errors import translate
from cipherward.site_agent.daemon.connection import handshake
from cipherward.site_agent.daemon.notify import notify


class Answering:
    def __init__(self, reply):
        self.reply = reply

    def hello(self, request):
        self.request = request
        return self.reply


def reply(world, **values):
    signed = values.pop("signed", world.site.member.status.newest.signed)
    return HelloReply(
        **{"protocol": 1, "version": "0.1.0", "now": int(time.time()), "status_list": signed} | values
    )


def test_the_handshake_says_who_we_are_and_takes_newer_status_lists(world):
    client = Answering(reply(world))
    handshake(world.site, client)
    assert client.request.protocol == 1 and client.request.libraries[0].startswith("tenseal ")
    first = world.site.member.status.newest
    other = Identity.make("heart", Role.SITE, "gamma")
    newer = world.consortium.revoke(world.root, other, "left", time.time())
    handshake(world.site, Answering(reply(world, signed=newer.signed)))
    assert world.site.member.status.newest.number == newer.number
    with pytest.raises(VerificationError, match="out of date"):
        handshake(world.site, Answering(reply(world, signed=first.signed)))
    forged = world.sign("hub", Label.STATUS_LIST, StatusList(consortium="heart", number=99))
    with pytest.raises(VerificationError):
        handshake(world.site, Answering(reply(world, signed=forged)))
    own = world.consortium.revoke(world.root, world.site.member.identity, "stolen", time.time())
    with pytest.raises(IdentityError, match="revoked"):
        handshake(world.site, Answering(reply(world, signed=own.signed)))


def test_a_revoked_coordinators_studies_are_refused_until_they_are_signed_anew(world):
    from cipherward.site_agent.daemon.revocation import require_coordinator_in_force

    world.admit()
    hub = Identity.make("heart", Role.COORDINATOR, "hub")
    newer = world.consortium.revoke(world.root, hub, "broken into", time.time())
    world.site.member.status.offer(newer.signed)
    with pytest.raises(IdentityError, match=r"hub.*is revoked, because broken into"):
        require_coordinator_in_force(world.site, world.trust)
    world.publish(world.manifest(signed_at=int(time.time()) + 1))
    require_coordinator_in_force(world.site, world.trust)


def test_another_protocol_is_named(world):
    with pytest.raises(ProtocolError, match="speaks protocol 2"):
        handshake(world.site, Answering(reply(world, protocol=2)))


class Failed(grpc.RpcError, grpc.Call):
    def __init__(self, code, details="", detail=None):
        self._code, self._details, self._detail = code, details, detail

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return [("cw-error-bin", self._detail.SerializeToString())] if self._detail else []

    def _unused(self, *_):
        raise NotImplementedError

    initial_metadata = is_active = time_remaining = cancel = add_callback = _unused


def said(code):
    return Failed(
        grpc.StatusCode.FAILED_PRECONDITION, detail=ErrorDetail(code=code, what="w", why="y", fix="f")
    )


def test_what_the_coordinator_says_is_not_taken_for_our_own_verification():
    assert isinstance(translate(said("CW-520")), LateError)
    assert isinstance(translate(said("CW-600")), UnavailableError)
    for code in ("CW-300", "CW-320", "CW-330", "CW-400", "CW-410"):
        error = translate(said(code))
        assert type(error) is ProtocolError and "the coordinator refused" in str(error)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "inspects TLS"),
        ("connection refused", "nothing listens"),
        ("DNS resolution failed for hub", "not known here"),
        ("HTTP proxy returned response code 407", "HTTP proxy refused"),
    ],
)
def test_a_failed_connection_is_explained(details, words):
    error = translate(Failed(grpc.StatusCode.UNAVAILABLE, details))
    assert isinstance(error, UnavailableError) and words in str(error)


def test_a_closed_port_is_explained_for_real(world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    channel = open_channel(f"127.0.0.1:{port}", world.site.member.channel_credentials())
    with channel, pytest.raises(UnavailableError, match="nothing listens there"):
        CoordinatorClient(channel).manifest("heart-1")


@pytest.mark.parametrize(
    "address", ["hub", "hub:0", "https://hub:443", ":1", "hub:99999", "a hub:1", "[::1", "::1:7443"]
)
def test_an_address_is_host_and_port(address):
    with pytest.raises(UsageError):
        check_address(address)
    for right in ("hub.example.org:7443", "10.0.0.1:1", "[::1]:65535", "spital-zürich:7443"):
        assert check_address(right) == right


def test_readiness_is_told_to_systemd(tmp_path, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1")
        assert server.recv(100) == b"READY=1"
    assert not notify("STOPPING=1"), "nobody listens any more"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")


def test_the_daemon_loads_neither_torch_nor_scipy():
    code = (
        "import sys, cipherward.site_agent.daemon.agent as a\n"
        "print([m for m in ('torch', 'opacus', 'sklearn', 'scipy', 'tenseal', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
