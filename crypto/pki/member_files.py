"""The folder in which a member's keys are made and approved. Keys are made once and never overwritten.

``anchor.pem``: the consortium's root, pinned. ``request.pem``: what its admin approves. ``credential.pem``:
what came back. ``status-list.pem``: the newest seen. ``tls.key`` (P-256, PKCS#8), ``signing.key`` (Ed25519
seed) and, for sites, ``sealing.key``: 0600. ``tls.crt``: the credential's certificate, for people and
monitoring; nothing here reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cipherward.crypto.pki import tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour_signed, blocks, parse_signed, unarmour_signed
from cipherward.crypto.pki.credentials import Credential, read_credential
from cipherward.crypto.pki.requests import Request, make_request, verify_request
from cipherward.crypto.pki.status_list import StatusChecker, StatusList, verify_status_list
from cipherward.crypto.signing import SigningKey
from cipherward.durable import explained, read_file, read_secret, write_file, write_secret
from cipherward.errors import FormatError, IdentityError, UsageError
from cipherward.ids import Identity
from cipherward.proto.v1.common_pb2 import Signed

ANCHOR, REQUEST, CREDENTIAL, STATUS_LIST = "anchor.pem", "request.pem", "credential.pem", "status-list.pem"
TLS_CERTIFICATE, TLS_KEY, SIGNING_KEY = "tls.crt", "tls.key", "signing.key"

MAX_TEXT_BYTES = 16 * 2**20
"""Largest armoured file read."""


def read_anchor(folder: Path) -> Anchor:
    """The pinned root; raises EnvironmentProblem or VerificationError."""
    return Anchor.from_text(read_file(folder / ANCHOR, limit=MAX_TEXT_BYTES))


def read_request(folder: Path) -> Request:
    """What this folder's owner asked for."""
    return verify_request(unarmour_signed(Kind.REQUEST, read_file(folder / REQUEST, limit=MAX_TEXT_BYTES)))


def make_once(path: Path, make: Callable[[], bytes]) -> bytes:
    """The secret file's content, made now if there is none. An existing key is never overwritten."""
    if not path.exists():
        write_secret(path, make())
    return read_secret(path)


def create_member(
    folder: Path,
    identity: Identity,
    anchor: Anchor,
    *,
    now: float,
    hosts: Sequence[str] = (),
    sealing_key: Callable[[], bytes] = bytes,
) -> Request:
    """Make the keys that are missing and write the request.

    A second run with the same name keeps every key and writes the request again; ``sealing_key`` makes or
    loads a site's HPKE key and gives its public half. The caller has checked the anchor's fingerprint.
    Raises UsageError if the folder is another member's or pins another root; EnvironmentProblem.
    """
    if identity.consortium != anchor.consortium:
        raise UsageError(
            f"the anchor is of consortium {anchor.consortium}, not {identity.consortium}",
            fix="Check --consortium and --anchor",
        )
    with explained("create", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_vacant(folder, identity, anchor)
    tls_key = tls.key_from_pem(make_once(folder / TLS_KEY, lambda: tls.key_to_pem(tls.new_key())))
    signing_key = SigningKey.from_bytes(
        make_once(folder / SIGNING_KEY, lambda: SigningKey.generate().to_bytes())
    )
    signed = make_request(identity, signing_key, tls_key, sealing_key=sealing_key(), hosts=hosts, now=now)
    write_file(folder / ANCHOR, anchor.to_text())
    write_file(folder / REQUEST, armour_signed(Kind.REQUEST, signed))
    return verify_request(signed)


def _check_vacant(folder: Path, identity: Identity, anchor: Anchor) -> None:
    if (folder / ANCHOR).exists() and read_anchor(folder).fingerprint != anchor.fingerprint:
        raise UsageError(
            f"{folder} pins another consortium root",
            why="its anchor.pem has another fingerprint",
            fix="Choose another folder",
        )
    if (folder / REQUEST).exists() and (owner := read_request(folder).identity) != identity:
        raise UsageError(
            f"{folder} belongs to {owner}", why=f"this is {identity}", fix="Choose another folder"
        )


def bundle(anchor: Anchor, credential: Credential, status: StatusList) -> bytes:
    """The one file that a member installs: anchor, credential and the newest status list."""
    return (
        anchor.to_text()
        + armour_signed(Kind.CREDENTIAL, credential.signed)
        + armour_signed(Kind.STATUS_LIST, status.signed)
    )


def _read_bundle(text: bytes, pinned: Anchor) -> tuple[Credential, StatusList]:
    found: dict[Kind, Signed] = {}
    for kind, content in blocks(text):
        if kind in found or kind not in (Kind.ANCHOR, Kind.CREDENTIAL, Kind.STATUS_LIST):
            raise FormatError(f"a credential file must not hold this {kind.value.lower()}")
        found[kind] = parse_signed(kind, content)
    if len(found) != 3:
        raise FormatError(
            "a credential file is incomplete",
            why="it must hold the anchor, the credential and a status list",
            fix="Ask the consortium's admin for the whole file that `consortium approve` wrote",
        )
    if Anchor.from_signed(found[Kind.ANCHOR]).fingerprint != pinned.fingerprint:
        raise IdentityError(
            "the credential is of another consortium root than the one pinned here",
            fix="Check with the consortium's admin whose file this is",
        )
    return read_credential(found[Kind.CREDENTIAL], pinned), verify_status_list(
        found[Kind.STATUS_LIST], pinned
    )


def install_credential(folder: Path, text: bytes, now: float) -> Credential:
    """Put an approved credential to use, if it is for this folder's name and keys and in force.

    Raises FormatError, VerificationError, IdentityError or EnvironmentProblem; the folder is then as before.
    """
    anchor, request = read_anchor(folder), read_request(folder)
    credential, status = _read_bundle(text, anchor)
    if credential.identity != request.identity:
        raise IdentityError(
            f"the credential is for {credential.identity}", why=f"this folder is {request.identity}'s"
        )
    if credential.fingerprint != request.fingerprint:
        raise IdentityError(
            f"the credential of {credential.identity} is for other keys than this folder's",
            why="it was approved for an older or a foreign request",
            fix=f"Have the consortium's admin approve {folder / REQUEST}",
        )
    credential.check(now, status)
    if (folder / STATUS_LIST).exists():
        checker = open_status(folder, anchor)
        if checker.newest.number < status.number:
            checker.offer(status.signed)
        credential.check(now, checker)
    else:
        write_status(folder, status.signed)
    write_file(folder / CREDENTIAL, armour_signed(Kind.CREDENTIAL, credential.signed))
    write_file(folder / TLS_CERTIFICATE, tls.to_pem(credential.certificate))
    return credential


def write_status(folder: Path, signed: Signed) -> None:
    """Keep the newest status list."""
    write_file(folder / STATUS_LIST, armour_signed(Kind.STATUS_LIST, signed))


def open_status(folder: Path, anchor: Anchor) -> StatusChecker:
    """A checker that starts from the folder's status list and keeps newer ones there."""
    known = unarmour_signed(Kind.STATUS_LIST, read_file(folder / STATUS_LIST, limit=MAX_TEXT_BYTES))
    return StatusChecker(anchor, known, lambda signed: write_status(folder, signed))
