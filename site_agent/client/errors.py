"""gRPC's errors as ours. What the coordinator says arrives whole in trailing metadata; what the network
does to a call is a status code alone, and is explained as far as that goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError

from cipherward.errors import (
    CipherwardError,
    EnvironmentProblem,
    LimitError,
    ProtocolError,
    UnavailableError,
    WireError,
    from_wire,
)
from cipherward.proto.v1.common_pb2 import ErrorDetail

DETAIL_KEY = "cw-error-bin"

_RETRY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}

_HINTS = (
    ("certificate has expired", "a certificate has expired", "Check the clock, and the certificates' expiry"),
    (
        "certificate_verify_failed",
        "the answering server's certificate is not one of the consortium's root",
        "Check the address. If a proxy inspects TLS between this site and the coordinator, have it pass this "
        "connection through: mutual TLS cannot go through an inspecting proxy",
    ),
    ("wrong_version_number", "the answering port does not speak TLS", "Check the address and port"),
    ("connection refused", "nothing listens there", "Check the address, and that the coordinator runs"),
    ("dns resolution failed", "the host name is not known here", "Check the address and this machine's DNS"),
    ("domain name not found", "the host name is not known here", "Check the address and this machine's DNS"),
    (
        "http proxy returned",
        "the hospital's HTTP proxy refused the connection",
        "Ask the proxy's administrator",
    ),
)


def translate(error: grpc.RpcError) -> CipherwardError:
    """Our error for a failed call: the coordinator's own words if it sent any, UnavailableError where a later
    try may succeed, ProtocolError otherwise."""
    call = as_call(error)
    if call is None:
        return UnavailableError("a call to the coordinator failed", why=str(error)[:200])
    for key, value in call.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            return _from_detail(value)
    code, details = call.code(), (call.details() or "").replace("\n", " ")
    lowered = details.lower()
    for mark, why, fix in _HINTS:
        if mark in lowered:
            return UnavailableError("cannot reach the coordinator", why=why, fix=fix)
    name = code.name if code is not None else "no status"
    if code in _RETRY:
        return UnavailableError("a call to the coordinator failed", why=f"{name}: {details[:200]}")
    return ProtocolError("the coordinator refused a call", why=f"{name}: {details[:200]}")


def as_call(error: object) -> grpc.Call | None:
    """A failed call's status and metadata. What gRPC raises is both an RpcError and a Call; its type stubs
    know only the first."""
    return error if isinstance(error, grpc.Call) else None


def _from_detail(content: bytes) -> CipherwardError:
    try:
        detail = ErrorDetail.FromString(content)
    except DecodeError:
        return ProtocolError("the coordinator refused a call", why="its reason cannot be read")
    said = from_wire(WireError(detail.code, detail.what, detail.why, detail.fix))
    if isinstance(said, ProtocolError | UnavailableError):
        return said
    if isinstance(said, LimitError | EnvironmentProblem):
        # Its rate limit or full disk: later is right.
        return UnavailableError(said.what, why=said.why, fix=said.fix)
    # Here VerificationError means that this site verified something itself; what a coordinator only says
    # must not be taken for it.
    return ProtocolError(f"the coordinator refused: {said.what}", why=said.why, fix=said.fix)


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors for gRPC's inside the block."""
    try:
        yield
    except grpc.RpcError as error:
        raise translate(error) from error
    except grpc.FutureCancelledError as error:
        raise UnavailableError("a call to the coordinator was broken off", why="this site did so") from error
