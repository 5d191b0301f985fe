"""The coordinator as a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LAUNCHER = """
import sys, typer
from cipherward.cli import coordinator_service
from cipherward.errors import CipherwardError
app = typer.Typer()
coordinator_service.add_to(app)
try:
    app()
except CipherwardError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)
"""


def spawn(folder: Path, listen: str = "127.0.0.1:0", *options: str) -> subprocess.Popen[str]:
    """Started; its log goes to ``log`` in the folder."""
    arguments = ["run", "--dir", str(folder), "--listen", listen, "--json", *options]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, stderr=log, text=True
        )


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serving, at that address. Killed in the end."""
    running = spawn(folder, "127.0.0.1:0", *options)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line, (folder / "log").read_text()
        yield running, json.loads(line)["listening"]
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


def inspectors() -> list[int]:
    """The processes that check uploads, of a coordinator in this process."""
    name, found = b"cipherward.coordinator.api.inspection_worker", []
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread or process that has ended
            for child in children.read_text().split():
                if name in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(child))
    return found
