"""Where the root key's passphrase comes from: a file, the environment, or the person at the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cipherward.errors import UsageError

VARIABLE = "CIPHERWARD_PASSPHRASE"

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the passphrase, mode 0600; or set {VARIABLE}.", show_default=False),
]


def read_passphrase(file: Path | None, *, confirm: bool = False) -> str:
    """The passphrase; ``confirm``: a new one, asked for twice. Raises UsageError if nobody can be asked."""
    from cipherward.durable import read_secret

    if file is not None:
        try:
            return read_secret(file).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not a passphrase", why="it is not UTF-8 text") from error
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise UsageError(
            "the root key's passphrase is not given",
            why="there is no terminal to ask at",
            fix=f"Pass --passphrase-file or set {VARIABLE}",
        )
    return str(typer.prompt("Passphrase of the root key", hide_input=True, confirmation_prompt=confirm))
