"""``cipherward consortium``: the offline admin, who says who takes part and what is studied."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cipherward.cli.membership import Json, emit
from cipherward.cli.passphrase import PassphraseFile, read_passphrase
from cipherward.ids import Role

app = typer.Typer(
    name="consortium",
    help="Make the consortium's root, approve and revoke members, sign studies. Use an offline machine.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--dir", help="The consortium's folder.")]
FOLDER = Path("consortium")


@app.command(epilog="Example: cipherward consortium init heart --dir consortium")
def init(
    name: Annotated[str, typer.Argument(help="The consortium's name: a-z, 0-9 and '-'.")],
    folder: Folder = FOLDER,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make the root: the key that everybody's trust hangs on."""
    from cipherward.clock import SystemClock
    from cipherward.crypto.pki.consortium_folder import ROOT_KEY, create_consortium
    from cipherward.crypto.pki.fingerprint import show
    from cipherward.crypto.pki.member_files import ANCHOR
    from cipherward.ids import check_name

    check_name(name, "consortium")
    anchor = create_consortium(
        folder, name, read_passphrase(passphrase_file, confirm=True), SystemClock().now()
    )
    shown = show(anchor.fingerprint)
    emit(
        json,
        {"consortium": name, "fingerprint": shown, "anchor": str(folder / ANCHOR)},
        [
            f"The root of consortium {name} is in {folder}.",
            f"Fingerprint: {shown}",
            f"Give {folder / ANCHOR} to every member, and read them the fingerprint by telephone.",
            f"Back up now: copy {folder} to two media kept in different places, and write the passphrase down on "
            "paper kept apart from both. Copy it again after each approval and revocation.",
            f"Without {ROOT_KEY} and its passphrase nobody can be approved or revoked and no study signed: a lost "
            "root means a new consortium.",
        ],
    )


@app.command(epilog="Example: cipherward consortium approve st-mary/request.pem --days 365")
def approve(
    request: Annotated[Path, typer.Argument(help="request.pem, as the member's init wrote it.")],
    folder: Folder = FOLDER,
    days: Annotated[int, typer.Option(help="Days until the credential expires.")] = 365,
    fingerprint: Annotated[
        str,
        typer.Option(help="The keys' fingerprint, heard from the member by telephone.", show_default=False),
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="The member lost its keys: revoke its old credential.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Issue a credential for a request. Approving the same keys again renews it."""
    from cipherward.clock import SystemClock
    from cipherward.crypto.pki import fingerprint as fingerprints
    from cipherward.crypto.pki.armour import Kind, unarmour_signed
    from cipherward.crypto.pki.consortium_folder import ConsortiumFolder
    from cipherward.crypto.pki.member_files import STATUS_LIST
    from cipherward.crypto.pki.requests import verify_request
    from cipherward.durable import read_file

    consortium = ConsortiumFolder(folder)
    asked = verify_request(unarmour_signed(Kind.REQUEST, read_file(request)))
    shown = fingerprints.show(asked.fingerprint)
    if fingerprint:
        fingerprints.check(asked.fingerprint, fingerprint, "request")
    elif sys.stdin.isatty():
        typer.echo(f"{asked.identity} asks with keys of fingerprint\n  {shown}", err=True)
        typer.confirm("Did the member read you the same by telephone?", abort=True, err=True)
    root = consortium.unlock(read_passphrase(passphrase_file))
    before = consortium.status().number
    credential, path = consortium.approve(
        root, asked, days=days, replace_keys=replace, now=SystemClock().now()
    )
    number = consortium.status().number
    revoked = [f"The old credential is revoked: distribute {folder / STATUS_LIST}, number {number}."]
    emit(
        json,
        {
            "identity": str(asked.identity),
            "fingerprint": shown,
            "credential": str(path),
            "serial": f"{credential.serial:016x}",
            "expires": credential.expiry,
            "status_list": number,
        },
        [
            f"{asked.identity} is approved until {credential.expiry}.",
            f"Fingerprint of its keys: {shown}",
            f"Send back {path}; it is installed with: cipherward {asked.identity.role.value} init --credential FILE",
            *(revoked if number != before else []),
        ],
    )


@app.command(epilog="Example: cipherward consortium revoke st-mary --reason 'left the consortium'")
def revoke(
    name: Annotated[str, typer.Argument(help="The member's name.")],
    reason: Annotated[str, typer.Option(help="Why, for everybody to read.", show_default=False)],
    folder: Folder = FOLDER,
    role: Annotated[Role, typer.Option(help="The member's role.")] = Role.SITE,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Revoke all credentials of a member: writes the next status list."""
    from cipherward.clock import SystemClock
    from cipherward.crypto.pki.consortium_folder import ConsortiumFolder
    from cipherward.crypto.pki.member_files import STATUS_LIST
    from cipherward.ids import Identity

    consortium = ConsortiumFolder(folder)
    identity = Identity.make(consortium.anchor.consortium, role, name)
    root = consortium.unlock(read_passphrase(passphrase_file))
    status = consortium.revoke(root, identity, reason, SystemClock().now())
    path = folder / STATUS_LIST
    emit(
        json,
        {"identity": str(identity), "status_list": status.number, "file": str(path)},
        [
            f"{identity} is revoked by status list {status.number}.",
            f"Copy {path} into the coordinator's folder: it takes effect there within seconds, and sites fetch it.",
            "A study that the member takes part in needs a new manifest version without it.",
        ],
    )


@app.command(
    name="sign-study",
    epilog="Example: cipherward consortium sign-study study.toml --weights initial.f32 --task-seed 1 "
    "--out manifest.pem",
)
def sign_study(
    study: Annotated[Path, typer.Argument(help="study.toml; a commented one is in examples/heart.")],
    weights: Annotated[
        Path, typer.Option(help="The initial weights: float32, little-endian.", show_default=False)
    ],
    folder: Folder = FOLDER,
    task_seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Make the task's model from this seed and write --weights.", show_default=False
        ),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(help="The manifest version that this one follows.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the signed manifest is written.")] = Path("manifest.pem"),
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Check a study and sign its manifest. Nothing in it can be changed afterwards but by a next version."""
    from cipherward.cli.study_signing import sign

    sign(
        study,
        weights,
        folder,
        task_seed=task_seed,
        previous=previous,
        out=out,
        passphrase=lambda: read_passphrase(passphrase_file),
        json=json,
    )
