"""The one mapping from errors to gRPC status. The error itself travels beside it, as ``cw-error-bin``."""

from __future__ import annotations

import grpc

from cipherward.errors import (
    CipherwardError,
    ConflictError,
    EnvironmentProblem,
    IdentityError,
    LimitError,
    NotFoundError,
    OutageError,
    PolicyError,
    ProtocolError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from cipherward.proto.v1.common_pb2 import ErrorDetail

TRAILER = "cw-error-bin"
_MAX_TEXT = 600  # metadata is limited to 8 KiB

# The first class that fits counts.
_STATUS: tuple[tuple[type[CipherwardError], grpc.StatusCode], ...] = (
    (IdentityError, grpc.StatusCode.PERMISSION_DENIED),
    (VerificationError, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (OutageError, grpc.StatusCode.UNAVAILABLE),
    (EnvironmentProblem, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (PolicyError, grpc.StatusCode.PERMISSION_DENIED),
    (ConflictError, grpc.StatusCode.ALREADY_EXISTS),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (ProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
)


class InternalError(CipherwardError):
    """Something this version did not foresee; the log has the rest under the incident's number."""

    code = "CW-900"


def status_of(error: CipherwardError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def detail_of(error: CipherwardError) -> ErrorDetail:
    """The error as it travels."""
    return ErrorDetail(
        code=error.code,
        what=error.what[:_MAX_TEXT],
        why=error.why[:_MAX_TEXT],
        fix=error.fix[:_MAX_TEXT],
    )
