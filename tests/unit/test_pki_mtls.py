"""Impersonation (threat T22) against a real gRPC server on loopback: only members get in."""

import time
from concurrent import futures

import grpc
import pytest

from cipherward.clock import ManualClock
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.grpc_credentials import channel_credentials, server_credentials
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.peers import PeerVerifier, peer_identity
from cipherward.crypto.pki.requests import make_request, verify_request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.status_list import StatusChecker
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey
from cipherward.errors import CipherwardError, FormatError, IdentityError
from cipherward.ids import Identity, Role
from cipherward.proto.v1.identity_pb2 import Revocation

METHOD = "/test.Who/Ami"


class Issued:
    """A member with its TLS key, as in its folder."""

    def __init__(self, root, anchor, role, name, *, days=10, now=None):
        identity = Identity.make("heart", role, name)
        self.key = tls.new_key()
        sealing_key = SealingKey.generate().public() if role is Role.SITE else b""
        hosts = ["localhost", "127.0.0.1"] if role is Role.COORDINATOR else []
        now = now or time.time()
        signed = make_request(
            identity, SigningKey.generate(), self.key, sealing_key=sealing_key, hosts=hosts, now=now
        )
        self.credential = issue_credential(root, anchor, verify_request(signed), days=days, now=now)
        self.anchor = anchor

    def pem(self, *, root_pem=None):
        return {
            "key_pem": tls.key_to_pem(self.key),
            "certificate_pem": tls.to_pem(self.credential.certificate),
            "root_pem": root_pem or self.anchor.root_pem,
        }


class Consortium:
    def __init__(self):
        self.root = RootKey.generate()
        self.anchor = self.root.make_anchor("heart", time.time())

    def issue(self, role=Role.SITE, name="alpha", **options):
        return Issued(self.root, self.anchor, role, name, **options)

    def status(self, number, *serials):
        revoked = [Revocation(serial=serial, reason="left", revoked_at=1) for serial in serials]
        listed = issue_status_list(self.root, self.anchor, number=number, revoked=revoked, now=time.time())
        return listed.signed


class Server:
    """Answers every caller with the identity that it was verified as."""

    def __init__(self, consortium, credentials):
        self.status = StatusChecker(consortium.anchor, consortium.status(1), lambda signed: None)
        self.clock = ManualClock(time.time())
        self.verifier = PeerVerifier(consortium.anchor, self.status, self.clock)
        self.contexts = []
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Who", {"Ami": handler})]
        )
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _answer(self, _request, context):
        self.contexts.append(context.auth_context())
        try:
            return str(self.verifier.verify(context.auth_context()).identity).encode()
        except CipherwardError as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

    def stop(self):
        self._server.stop(None).wait()


@pytest.fixture(scope="module")
def consortium():
    return Consortium()


@pytest.fixture(scope="module")
def coordinator(consortium):
    return consortium.issue(Role.COORDINATOR, "coordinator")


@pytest.fixture
def server(consortium, coordinator):
    server = Server(consortium, server_credentials(**coordinator.pem()))
    yield server
    server.stop()


def call(server, credentials, host="127.0.0.1"):
    """The identity that the server saw; RpcError if it did not answer."""
    target = f"{host}:{server.port}"
    with (
        grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel
    ):
        return channel.unary_unary(METHOD)(b"", timeout=10).decode()


def refused(server, credentials, host="127.0.0.1"):
    with pytest.raises(grpc.RpcError) as caught:
        call(server, credentials, host)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("role", [Role.SITE, Role.OPERATOR])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_member_gets_in_as_itself(consortium, server, role, host):
    member = consortium.issue(role)
    assert call(server, channel_credentials(**member.pem()), host) == f"spiffe://heart/{role.value}/alpha"
    context = server.contexts[-1]
    assert peer_identity(context) == member.credential.identity
    peer = server.verifier.verify(context)
    assert (peer.serial, peer.tls_key_digest) == (member.credential.serial, member.credential.tls_key_digest)


def test_another_root_does_not_get_in_and_is_not_believed(consortium, coordinator, server):
    stranger = Consortium()
    site = stranger.issue()
    # The stranger even knows the real root's public certificate.
    code, _ = refused(server, channel_credentials(**site.pem(root_pem=consortium.anchor.root_pem)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert server.contexts == []
    # And a site does not talk to a coordinator of another root.
    fake = Server(stranger, server_credentials(**stranger.issue(Role.COORDINATOR).pem()))
    try:
        code, _ = refused(fake, channel_credentials(**consortium.issue().pem()))
        assert code is grpc.StatusCode.UNAVAILABLE and fake.contexts == []
    finally:
        fake.stop()


def test_an_expired_certificate_does_not_get_in(consortium, server):
    old = consortium.issue(days=1, now=time.time() - 2 * 86_400)
    code, _ = refused(server, channel_credentials(**old.pem()))
    assert code is grpc.StatusCode.UNAVAILABLE and server.contexts == []


def test_a_certificate_that_expires_while_connected_stops_working(consortium, server):
    site = consortium.issue(days=1)
    with grpc.secure_channel(f"127.0.0.1:{server.port}", channel_credentials(**site.pem())) as channel:
        method = channel.unary_unary(METHOD)
        method(b"", timeout=10)
        server.clock.advance(86_400 + 10)
        with pytest.raises(grpc.RpcError, match="has expired"):
            method(b"", timeout=10)


def test_a_certificate_that_is_revoked_while_connected_stops_working(consortium, server):
    site, other = consortium.issue(), consortium.issue(name="beta")
    with grpc.secure_channel(f"127.0.0.1:{server.port}", channel_credentials(**site.pem())) as channel:
        method = channel.unary_unary(METHOD)
        method(b"", timeout=10)
        assert server.status.offer(consortium.status(2, site.credential.serial))
        with pytest.raises(grpc.RpcError, match="is revoked"):
            method(b"", timeout=10)
    assert call(server, channel_credentials(**other.pem())).endswith("/beta")


def test_a_member_cannot_take_anothers_name(consortium, server):
    alpha, beta = consortium.issue(), consortium.issue(name="beta")
    # With its own key under the other's certificate there is no TLS at all.
    stolen = alpha.pem() | {"certificate_pem": beta.pem()["certificate_pem"]}
    code, _ = refused(server, channel_credentials(**stolen))
    assert code is grpc.StatusCode.UNAVAILABLE
    # A site's certificate signs no further certificate.
    forged = tls.issue_certificate(
        alpha.key,
        alpha.credential.certificate,
        alpha.key.public_key(),
        beta.credential.identity,
        [],
        serial=beta.credential.serial,
        issued_at=int(time.time()),
        expires_at=int(time.time()) + 86_400,
    )
    chain = tls.to_pem(tls.load_certificate(forged)) + tls.to_pem(alpha.credential.certificate)
    code, _ = refused(server, channel_credentials(**(alpha.pem() | {"certificate_pem": chain})))
    assert code is grpc.StatusCode.UNAVAILABLE and server.contexts == []


def test_a_servers_certificate_does_not_call(coordinator, server):
    code, details = refused(server, channel_credentials(**coordinator.pem()))
    assert (code, server.contexts) == (grpc.StatusCode.UNAVAILABLE, []), details


def test_a_members_certificate_does_not_serve(consortium):
    site = consortium.issue()
    pretender = Server(consortium, server_credentials(**site.pem()))
    try:
        code, _ = refused(pretender, channel_credentials(**consortium.issue(name="beta").pem()))
        assert code is grpc.StatusCode.UNAVAILABLE and pretender.contexts == []
    finally:
        pretender.stop()


def test_a_coordinators_certificate_counts_for_its_hosts_only(consortium, server):
    site = consortium.issue()
    named = grpc.secure_channel(
        f"127.0.0.1:{server.port}",
        channel_credentials(**site.pem()),
        options=[("grpc.ssl_target_name_override", "elsewhere.example")],
    )
    with named, pytest.raises(grpc.RpcError) as caught:
        named.unary_unary(METHOD)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_plaintext_and_anonymous_tls_do_not_get_in(consortium, server):
    code, _ = refused(server, None)
    assert code is grpc.StatusCode.UNAVAILABLE
    anonymous = grpc.ssl_channel_credentials(root_certificates=consortium.anchor.root_pem)
    code, _ = refused(server, anonymous)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert server.contexts == []


# The verifier by itself, on contexts that no TLS stack should produce.


def verifier(consortium, *revoked, roles=frozenset({Role.SITE})):
    status = StatusChecker(consortium.anchor, consortium.status(1, *revoked), lambda signed: None)
    return PeerVerifier(consortium.anchor, status, ManualClock(time.time()), roles)


def context(member, **changes):
    return {
        "x509_pem_cert": [tls.to_pem(member.credential.certificate)],
        "peer_spiffe_id": [str(member.credential.identity).encode()],
    } | changes


def test_the_verifier_fails_closed(consortium):
    site, operator = consortium.issue(), consortium.issue(Role.OPERATOR)
    assert verifier(consortium).verify(context(site)).identity == site.credential.identity
    stranger = Consortium().issue()
    coordinator = consortium.issue(Role.COORDINATOR)
    for bad in (
        {},
        context(site, peer_spiffe_id=[]),
        context(site, x509_pem_cert=[]),
        context(site, peer_spiffe_id=[b"spiffe://heart/site/beta"]),
        context(site, peer_spiffe_id=[b"spiffe://heart/site/alpha"] * 2),
        context(operator),
        context(coordinator),
        context(stranger),
    ):
        with pytest.raises(IdentityError):
            verifier(consortium).verify(bad)
    for malformed in (
        context(site, peer_spiffe_id=[b"\xff"]),
        context(site, x509_pem_cert=[b"no"]),
    ):
        with pytest.raises(FormatError):
            verifier(consortium).verify(malformed)
    with pytest.raises(IdentityError, match="revoked"):
        verifier(consortium, site.credential.serial).verify(context(site))
    with pytest.raises(IdentityError, match="sites"):
        verifier(consortium).verify(context(operator))


def test_a_certificate_of_the_same_root_for_another_consortium_is_refused(consortium):
    key = tls.new_key()
    now = int(time.time())
    der = tls.issue_certificate(
        consortium.root.tls_key,
        consortium.anchor.root,
        key.public_key(),
        Identity.make("lungs", Role.SITE, "alpha"),
        [],
        serial=5,
        issued_at=now,
        expires_at=now + 1000,
    )
    pem = tls.to_pem(tls.load_certificate(der))
    with pytest.raises(IdentityError, match="of another consortium"):
        verifier(consortium).verify(
            {"x509_pem_cert": [pem], "peer_spiffe_id": [b"spiffe://lungs/site/alpha"]}
        )
