"""``cipherward audit``: check what the coordinator and the sites say happened, without trusting them."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from cipherward.cli.membership import Json
from cipherward.errors import UsageError

if TYPE_CHECKING:
    from cipherward.coordinator.audit.verify import Progress
    from cipherward.crypto.audit import StudyAudit
    from cipherward.crypto.pki.anchor import Anchor


class _OfStudy(Protocol):
    @property
    def study(self) -> str: ...


T = TypeVar("T", bound=_OfStudy)

MAX_CHUNK_BYTES = 4 * 2**20
INSTALLED_SITE = Path("/var/lib/cipherward-site")
"""Where the packaged unit keeps a site."""

app = typer.Typer(
    name="audit",
    help="Verify records, signatures and sums without trusting the coordinator.",
    no_args_is_help=True,
)

AnchorFile = Annotated[
    Path | None,
    typer.Option(
        "--anchor",
        help="Your own copy of the consortium's anchor.pem.  [default: the one in DIR]",
        show_default=False,
    ),
]
Fingerprint = Annotated[
    str, typer.Option(help="The anchor's fingerprint, heard from the admin by telephone.", show_default=False)
]


@app.command(
    epilog="Examples: cipherward audit verify --dir hub; cipherward audit verify --dir copy-of-hub "
    "--anchor anchor.pem --fingerprint '1f2e ...' --study heart --json"
)
def verify(
    folder: Annotated[
        Path, typer.Option("--dir", help="The coordinator's folder or a copy of it; or a site's.")
    ],
    study: Annotated[str, typer.Option(help="This study alone.  [default: all]", show_default=False)] = "",
    database: Annotated[str, typer.Option(help="SQLAlchemy URL.  [default: coordinator.db in DIR]")] = "",
    blobs: Annotated[str, typer.Option(help="fsspec URL.  [default: blobs in DIR]")] = "",
    anchor: AnchorFile = None,
    fingerprint: Fingerprint = "",
    json: Json = False,
) -> None:
    """Check every signature and link of the transcript, and add up again every sum whose updates are still kept.

    Reads only, and works while the service runs. Names the first thing that is wrong in each study: round, site,
    chunk. Exits 0 only if all that could be checked is right. Of a site's folder it checks the site's own records.
    """
    from cipherward.cli.audit_view import print_audits, progress_bar, to_json
    from cipherward.crypto.pki import fingerprint as fingerprints

    trusted = _trusted(anchor or folder / "anchor.pem", fingerprint)
    with progress_bar(shown=not json) as progress:
        audits = _audits(folder, study, database, blobs, trusted, progress)
    right = all(one.finding is None for one in audits)
    if json:
        found = {
            "right": right,
            "anchor": fingerprints.show(trusted.fingerprint),
            "anchor_compared": bool(fingerprint),
            "studies": [to_json(one) for one in audits],
        }
        typer.echo(json_module.dumps(found, indent=1))
    else:
        print_audits(audits, trusted, compared=bool(fingerprint))
    if not right:
        raise typer.Exit(1)


@app.command(
    epilog="Example: cipherward audit prove --dir hub --study heart --round 3 --site cleveland --chunk 0 "
    "--out proof.pem"
)
def prove(
    folder: Annotated[Path, typer.Option("--dir", help="The coordinator's folder or a copy of it.")],
    study: Annotated[str, typer.Option(help="The study.")],
    number: Annotated[int, typer.Option("--round", min=1, help="The round.")],
    site: Annotated[str, typer.Option(help="Whose update.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    chunk: Annotated[
        int | None,
        typer.Option(min=0, help="Prove this chunk of the update besides.", show_default=False),
    ] = None,
    database: Annotated[str, typer.Option(help="SQLAlchemy URL.  [default: coordinator.db in DIR]")] = "",
    blobs: Annotated[str, typer.Option(help="fsspec URL.  [default: blobs in DIR]")] = "",
    anchor: AnchorFile = None,
) -> None:
    """Write a proof that a site's update is in the sum of a round, for `audit check` anywhere else.

    It holds no ciphertext, and nothing that the sites of the study do not see anyway.
    """
    from cipherward.coordinator.audit.prove import prove as make
    from cipherward.coordinator.audit.source import Source
    from cipherward.crypto.inclusion import proof_text
    from cipherward.durable import write_file

    source = Source(folder, database, blobs)
    (stored,) = _chosen(source.studies(), study, folder)
    proof = make(source, stored, number, site, chunk, _trusted(anchor or folder / "anchor.pem", ""))
    text = proof_text(proof)
    write_file(out, text)
    typer.echo(f"{out}: {len(text)} bytes, check it with: cipherward audit check {out} --anchor FILE")


@app.command(epilog="Example: cipherward audit check proof.pem --anchor anchor.pem --fingerprint '1f2e ...'")
def check(
    proof: Annotated[Path, typer.Argument(help="The file that `audit prove` wrote.")],
    anchor: Annotated[Path, typer.Option(help="Your own copy of the consortium's anchor.pem.")],
    fingerprint: Fingerprint = "",
    update: Annotated[
        Path | None,
        typer.Option(help="A file with the chunk's bytes: are they the ones proven?", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Check a proof with the consortium's anchor alone: no coordinator, no database, no network."""
    from cipherward.cli.audit_view import print_proven, proven_to_json
    from cipherward.crypto.inclusion import MAX_PROOF_TEXT, check_chunk, check_proof, read_proof
    from cipherward.durable import read_file

    trusted = _trusted(anchor, fingerprint)
    proven = check_proof(read_proof(read_file(proof, limit=MAX_PROOF_TEXT)), trusted)
    if update is not None:
        check_chunk(proven, read_file(update, limit=MAX_CHUNK_BYTES))
    if json:
        typer.echo(json_module.dumps(proven_to_json(proven), indent=1))
    else:
        print_proven(proven, trusted, compared=bool(fingerprint), update=update is not None)


def _trusted(path: Path, fingerprint: str) -> Anchor:
    from cipherward.crypto.pki import fingerprint as fingerprints
    from cipherward.crypto.pki.anchor import Anchor
    from cipherward.crypto.pki.member_files import MAX_TEXT_BYTES
    from cipherward.durable import read_file

    anchor = Anchor.from_text(read_file(path, limit=MAX_TEXT_BYTES))
    if fingerprint:
        fingerprints.check(anchor.fingerprint, fingerprint, "anchor")
    return anchor


def _audits(
    folder: Path, study: str, database: str, blobs: str, anchor: Anchor, progress: Progress
) -> list[StudyAudit]:
    from cipherward.coordinator.audit.source import Source
    from cipherward.coordinator.audit.verify import Auditor
    from cipherward.site_agent.state.folder import SiteFolder

    if SiteFolder(folder).database.exists():
        if database or blobs:
            raise UsageError(f"{folder} is a site's folder", why="--database and --blobs are a coordinator's")
        return _chosen(_site_audits(folder, anchor), study, folder)
    source = Source(folder, database, blobs)
    studies = _chosen(source.studies(), study, folder)
    return Auditor(source, anchor, progress, _key_on_this_machine(folder)).audit(studies)


def _site_audits(folder: Path, anchor: Anchor) -> list[StudyAudit]:
    from cipherward.crypto.pki.member_files import read_request
    from cipherward.site_agent.audit import audit_site
    from cipherward.site_agent.state.folder import SiteFolder

    return audit_site(SiteFolder(folder), read_request(folder).identity.name, anchor)


def _chosen(found: list[T], study: str, folder: Path) -> list[T]:
    chosen = [one for one in found if study in ("", one.study)]
    if study and not chosen:
        raise UsageError(f"{folder} has no study {study[:80]!r}", fix="Check --study")
    return chosen


def _key_on_this_machine(folder: Path) -> str:
    """Why sums of the shared-key suite must not be added up here: whoever has the key and this store together can
    open every hospital's update. Only the usual places can be looked at; the rest is the auditor's word."""
    from cipherward.site_agent.state.folder import SiteFolder

    around = folder.absolute().parent
    for place in (folder, around, *around.glob("*"), *around.glob("*/*"), INSTALLED_SITE):
        try:
            if next(SiteFolder(place).shared_keys.glob("*.key"), None) is not None:
                return f"this machine has a shared key, in {place}: audit where no site is"
        except OSError:
            continue  # another user's
    return ""
