"""One tree of errors. Each has a stable code, and says what happened, why, and what to do, in one line.

CipherwardError
├── UsageError           a command, file or option is wrong            exit 2
├── EnvironmentProblem   disk full, port in use, missing file          exit 3
│   └── OutageError      a database or object store does not answer   exit 3
├── VerificationError    a signature, digest, certificate or proof fails
│   ├── FormatError      bytes that do not have the agreed structure
│   ├── IdentityError    who sent this is not who it must be
│   └── RollbackError    this machine's own state is an older copy
├── PolicyError          the hospital's own policy refuses
│   └── BudgetError      the privacy budget is spent
├── ProtocolError        a message that the round's state does not allow
│   ├── ConflictError    same id, different content
│   ├── LateError        the round has moved on
│   └── NotFoundError    there is no such record or item (yet)
├── LimitError           a size, rate or count limit is exceeded
└── UnavailableError     a peer or worker cannot be reached; retry later
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


def printable(text: str) -> str:
    """Without line breaks, terminal sequences and reversed text."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


class CipherwardError(Exception):
    """Base of all errors that users see.

    ``code`` is stable across releases (scripts may match it); ``what``, ``why`` and ``fix`` are for people.
    """

    code: ClassVar[str] = "CW-000"
    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        parts = [f"{self.code} {self.what.rstrip('.')}"]
        if self.why:
            parts.append(f"because {self.why.rstrip('.')}")
        line = ", ".join(parts)
        # Parts of it may come from a peer: nobody's log or terminal is to act on them.
        return printable(f"{line}. {self.fix.rstrip('.')}." if self.fix else f"{line}.")


class UsageError(CipherwardError):
    """A command, option or configuration file is wrong."""

    code = "CW-100"
    exit_status = 2


class EnvironmentProblem(CipherwardError):
    """The machine does not allow it: disk full, port in use, file missing or unreadable."""

    code = "CW-200"
    exit_status = 3


class OutageError(EnvironmentProblem):
    """A service that this machine needs (database, object store) does not answer now; it is tried again."""

    code = "CW-210"


class VerificationError(CipherwardError):
    """A signature, digest, proof or certificate does not hold. Nothing of the message may be used."""

    code = "CW-300"


class FormatError(VerificationError):
    """Bytes that do not have the agreed structure; raised before any native parser sees them."""

    code = "CW-310"


class IdentityError(VerificationError):
    """The sender is unknown, expired, revoked, or not the one this message must come from."""

    code = "CW-320"


class RollbackError(VerificationError):
    """This machine's own state is an older copy than what it signed for. Going on could spend privacy twice."""

    code = "CW-330"


class PolicyError(CipherwardError):
    """The hospital's own policy does not allow what the study asks."""

    code = "CW-400"


class BudgetError(PolicyError):
    """The privacy budget of a data set does not cover what the study asks."""

    code = "CW-410"


class ProtocolError(CipherwardError):
    """A message that the state of the study or round does not allow."""

    code = "CW-500"


class ConflictError(ProtocolError):
    """The same id came with different content: a forbidden mutation."""

    code = "CW-510"


class LateError(ProtocolError):
    """The round or study has moved on; this message can no longer count."""

    code = "CW-520"


class NotFoundError(ProtocolError):
    """What was asked for does not exist, or not yet."""

    code = "CW-530"


class LimitError(CipherwardError):
    """A limit on size, rate or count is exceeded; the message names the limit."""

    code = "CW-600"
    limit: str = ""
    """Its name in the coordinator's policy table, where it is one of that table's."""


class UnavailableError(CipherwardError):
    """A peer, the coordinator or a worker process cannot be reached now. Retrying later is right."""

    code = "CW-700"


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it travels: the code and the parts of the message, rebuilt at the other side."""

    code: str
    what: str
    why: str
    fix: str


def _tree(root: type[CipherwardError]) -> dict[str, type[CipherwardError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(error: WireError) -> CipherwardError:
    """The error with that code, or the base class for a code that this version does not know."""
    return _tree(CipherwardError).get(error.code, CipherwardError)(error.what, why=error.why, fix=error.fix)
