"""The coordinator's folder: what the service adds to the identity that ``coordinator init`` made there."""

from __future__ import annotations

from pathlib import Path

from cipherward.database import file_url
from cipherward.durable import explained, write_file

DATABASE, BLOBS, ADDRESS = "coordinator.db", "blobs", "address"


def database_url(folder: Path) -> str:
    """The default database."""
    return file_url(folder / DATABASE)


def blobs_url(folder: Path) -> str:
    """The default place for blobs."""
    return f"file://{folder.absolute()}/{BLOBS}"


def write_address(folder: Path, address: str) -> None:
    """Where the service listens, for scripts: HOST:PORT and a newline."""
    write_file(folder / ADDRESS, f"{address}\n".encode())


def remove_address(folder: Path) -> None:
    """The service does not listen, or no longer."""
    with explained("delete", folder / ADDRESS):
        (folder / ADDRESS).unlink(missing_ok=True)
