"""A virtual environment for each peer, outside of ours, made once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from peer_systems import Peer

from cipherward.durable import explained, write_file
from cipherward.errors import EnvironmentProblem, UsageError

_STAMP = ".installed"
# What pip says, and what it means. In order: offline it ends with "no matching distribution", too.
_UNREACHED = ("the package index was not reached", "Check the network and pip's settings")
_REASONS = (
    ("No space left on device", "the disk is full", "Free about 1 GB, and run it again"),
    ("after connection broken by", *_UNREACHED),
    ("NewConnectionError", *_UNREACHED),
    ("NameResolutionError", *_UNREACHED),
    ("No matching distribution", "the package index has no such version for this Python", "Try Python 3.11"),
)


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def _wanted(requirements: Path) -> bytes:
    content = requirements.read_bytes() + sys.version.encode()
    return hashlib.sha256(content).hexdigest().encode()


def is_installed(peer: Peer, folder: Path) -> bool:
    """Whether ``folder`` has exactly these requirements for exactly this Python."""
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_bytes() == _wanted(peer.requirements)


def check_python(peer: Peer, version: tuple[int, int]) -> None:
    """UsageError for a Python that the peer has no wheels for."""
    if version > peer.newest_python:
        newest = ".".join(map(str, peer.newest_python))
        raise UsageError(
            f"{peer.label} cannot be measured with Python {version[0]}.{version[1]}",
            why=f"what it depends on has wheels up to {newest}",
            fix=f"Make the project's environment with it: make setup PYTHON=python{newest}",
        )


def explain(peer: Peer, output: str, log: Path) -> EnvironmentProblem:
    """What a failed installation means, in a line."""
    for sign, why, fix in _REASONS:
        if sign in output:
            return EnvironmentProblem(f"{peer.label} was not installed", why=why, fix=f"{fix}; see {log}")
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()
    return EnvironmentProblem(
        f"{peer.label} was not installed", why=errors[-1] if errors else "pip said nothing", fix=f"See {log}"
    )


def install(peer: Peer, folder: Path) -> None:
    """Make ``folder`` the peer's environment. EnvironmentProblem with a reason if that failed; a half-made one
    has no stamp and is made again."""
    check_python(peer, sys.version_info[:2])
    log = folder.with_suffix(".log")
    with explained("write", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    install_command = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install_command, "--no-input", "--retries", "2", "-r", str(peer.requirements)],
    ):
        done = subprocess.run(  # noqa: S603 - our own command line
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )  # fmt: skip
        with log.open("a") as file:
            file.write(done.stdout)
        if done.returncode:
            raise explain(peer, done.stdout, log)
    write_file(folder / _STAMP, _wanted(peer.requirements))
