"""What `site init`, `coordinator init` and `operator init` share: keys and a request first, the approved credential
second."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cipherward.errors import UsageError
from cipherward.ids import Identity, Role

Consortium = Annotated[str, typer.Option(help="The consortium's name.", show_default=False)]
Name = Annotated[str, typer.Option(help="This member's name: a-z, 0-9 and '-'.", show_default=False)]
Anchor = Annotated[
    Path | None, typer.Option(help="anchor.pem, from the consortium's admin.", show_default=False)
]
Fingerprint = Annotated[
    str, typer.Option(help="The anchor's fingerprint, heard from the admin by telephone.", show_default=False)
]
Credential = Annotated[
    Path | None,
    typer.Option(help="Second step: the file that the admin sent back.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def emit(json: bool, fields: dict[str, object], lines: Sequence[str]) -> None:
    """Print what a command did: for a script, or for a person."""
    if json:
        typer.echo(json_module.dumps(fields))
    else:
        for line in lines:
            typer.echo(line)


def init(
    role: Role,
    folder: Path,
    *,
    consortium: str,
    name: str,
    anchor: Path | None,
    fingerprint: str,
    credential: Path | None,
    json: bool,
    hosts: Sequence[str] = (),
    sealing_key: Callable[[], bytes] = bytes,
) -> None:
    """Make the keys and the request, or install the credential. Raises UsageError for options that do not fit."""
    first = {
        "--consortium": bool(consortium),
        "--name": bool(name),
        "--anchor": anchor is not None,
        "--host": bool(hosts),
    }
    needed = set(first) if role is Role.COORDINATOR else set(first) - {"--host"}
    if credential is not None:
        if any(first.values()) or fingerprint:
            raise UsageError(
                "--credential goes with --dir alone", why="the folder knows its name and consortium already"
            )
        _install(role, folder, credential, json)
        return
    missing = sorted(option for option in needed if not first[option])
    if missing or anchor is None:
        raise UsageError(
            f"{role.value} init lacks {', '.join(missing)}",
            why="they are needed to make the keys and the request",
            fix=f"See cipherward {role.value} init --help; with --credential FILE an approved one is installed",
        )
    _request(
        role, folder, Identity.make(consortium, role, name), anchor, fingerprint, hosts, sealing_key, json
    )


def _request(
    role: Role,
    folder: Path,
    identity: Identity,
    anchor_file: Path,
    fingerprint: str,
    hosts: Sequence[str],
    sealing_key: Callable[[], bytes],
    json: bool,
) -> None:
    from cipherward.clock import SystemClock
    from cipherward.crypto.pki import fingerprint as fingerprints
    from cipherward.crypto.pki.anchor import Anchor
    from cipherward.crypto.pki.member_files import REQUEST, create_member
    from cipherward.durable import read_file

    anchor = Anchor.from_text(read_file(anchor_file))
    fingerprints.check(anchor.fingerprint, fingerprint or _ask_fingerprint(), "anchor")
    request = create_member(
        folder, identity, anchor, now=SystemClock().now(), hosts=hosts, sealing_key=sealing_key
    )
    shown = fingerprints.show(request.fingerprint)
    path = folder / REQUEST
    emit(
        json,
        {"identity": str(identity), "fingerprint": shown, "request": str(path)},
        [
            f"{identity}: keys made in {folder}; they never leave this machine.",
            f"Fingerprint of the keys: {shown}",
            f"Next: send {path} to the consortium's admin and read them the fingerprint by telephone.",
            f"Then: cipherward {role.value} init --dir {shlex.quote(str(folder))} --credential FILE, with the "
            "file they send back.",
        ],
    )


def _ask_fingerprint() -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "the anchor's fingerprint is not given",
            why="whoever could exchange anchor.pem on its way would own this consortium",
            fix="Ask the consortium's admin for it by telephone and pass --fingerprint",
        )
    return str(typer.prompt("Fingerprint of the anchor, as the consortium's admin reads it to you"))


def _install(role: Role, folder: Path, file: Path, json: bool) -> None:
    from cipherward.clock import SystemClock
    from cipherward.crypto.pki.member_files import MAX_TEXT_BYTES, install_credential
    from cipherward.crypto.pki.store import load_member
    from cipherward.durable import read_file

    now = SystemClock().now()
    text = read_file(file, limit=MAX_TEXT_BYTES)
    credential = install_credential(folder, text, now)
    member = load_member(folder, role, now)
    emit(
        json,
        {
            "identity": str(member.identity),
            "expires": credential.expiry,
            "days_left": member.days_left(now),
            "status_list": member.status.newest.number,
        },
        [
            f"{member.identity} is approved until {credential.expiry}.",
            *(f"warning: {line}" for line in member.warnings(now)),
        ],
    )
