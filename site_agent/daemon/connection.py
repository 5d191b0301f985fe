"""Being connected: the handshake, then the stream of snapshots, again and again with jittered exponential
backoff."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from importlib.metadata import version

from cipherward import __version__
from cipherward.errors import (
    CipherwardError,
    IdentityError,
    ProtocolError,
    RollbackError,
    UnavailableError,
)
from cipherward.proto.v1.coordinator_pb2 import HelloReply, HelloRequest, StudySnapshot
from cipherward.site_agent.client.channel import proxy_in_use
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.site import Site

PROTOCOL = 1
CLOCK_WARNING_SECONDS = 300
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0

_spread = random.SystemRandom()


def handshake(site: Site, client: CoordinatorClient) -> HelloReply:
    """Hello. Raises ProtocolError for a coordinator of another protocol, VerificationError for one that
    shows an older status list than was seen before, IdentityError if this site's certificate is revoked by
    the newest."""
    request = HelloRequest(
        protocol=PROTOCOL,
        version=__version__,
        libraries=[f"tenseal {version('tenseal')}"],
        status_list_number=site.member.status.newest.number,
        now=int(site.clock.now()),
    )
    reply = client.hello(request)
    if reply.protocol != PROTOCOL:
        raise ProtocolError(
            f"the coordinator speaks protocol {reply.protocol}",
            why=f"this agent (version {__version__}) speaks {PROTOCOL}",
            fix=f"Install the same version of Cipherward at both ends (there: {reply.version[:40]})",
        )
    status = site.member.status
    if status.offer(reply.status_list):
        site.log.info("status list renewed", number=status.newest.number)
    status.check(site.member.credential.serial, str(site.member.identity))
    ahead = reply.now - site.clock.now()
    if abs(ahead) > CLOCK_WARNING_SECONDS:
        site.log.warning(
            "this machine's clock differs from the coordinator's",
            seconds=round(ahead),
            fix="Set one of them: certificates are judged by the clock",
        )
    return reply


class Connection:
    """Keeps a stream of snapshots up until it is stopped."""

    def __init__(
        self,
        site: Site,
        client: CoordinatorClient,
        on_hello: Callable[[HelloReply], None],
        on_snapshot: Callable[[StudySnapshot], None],
    ) -> None:
        self._site, self._client = site, client
        self._on_hello, self._on_snapshot = on_hello, on_snapshot
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End ``run``."""
        self._stopping.set()
        self._client.cancel()

    def run(self) -> None:
        """Until ``stop``. Raises what no later try mends: IdentityError for this site's own certificate
        revoked or expired, RollbackError for its own state restored from an older copy."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self._preflight()
                reply = handshake(self._site, self._client)
                self._site.log.info("connected", coordinator_version=reply.version)
                failures = 0
                self._on_hello(reply)
                for snapshot in self._client.watch():
                    self._on_snapshot(snapshot)
                raise UnavailableError("the coordinator ended the stream")
            except (IdentityError, RollbackError):
                raise
            except CipherwardError as error:
                if self._stopping.is_set():
                    return
                failures += 1
                self._log_failure(error, failures)
            limit = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 10))
            self._stopping.wait(_spread.uniform(limit / 2, limit))

    def _preflight(self) -> None:
        """gRPC says only UNAVAILABLE when the other side rejects our certificate: say here what is wrong
        with it."""
        member = self._site.member
        member.credential.check(self._site.clock.now(), member.status)

    def _log_failure(self, error: CipherwardError, failures: int) -> None:
        extra: dict[str, str] = {}
        if proxy := proxy_in_use():
            extra["proxy"] = proxy
        if isinstance(error, UnavailableError) and failures == 3:
            extra["fix"] = (
                "This site's certificate may have been refused there: compare both clocks, ask the operator"
            )
        self._site.log.warning("not connected", error=str(error), tries=failures, **extra)
