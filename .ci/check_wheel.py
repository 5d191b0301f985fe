"""Compares the wheel's contents with what git tracks under the roots: nothing missing, nothing extra."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

ROOTS = {"proto": "cipherward/proto", "crypto": "cipherward/crypto", "coordinator": "cipherward/coordinator",
         "site_agent": "cipherward/site_agent", "evaluation": "cipherward/evaluation",
         "src/cipherward": "cipherward"}  # fmt: skip


def expected() -> set[str]:
    """Paths in the wheel that the tracked files call for."""
    names = (
        subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.decode().split("\0")
    )
    found = set()
    for name in filter(None, names):
        for root, target in ROOTS.items():
            if PurePosixPath(name).is_relative_to(root):
                found.add(str(PurePosixPath(target) / PurePosixPath(name).relative_to(root)))
    return found


def main() -> int:
    """Exit status 1 and a list where they differ."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = expected()
    for label, names in (
        ("missing from the wheel", wanted - packed),
        ("not tracked by git", packed - wanted),
    ):
        for name in sorted(names):
            print(f"{label}: {name}")
    print(f"wheel: {len(packed)} files, {len(wanted)} tracked")
    return int(packed != wanted)


if __name__ == "__main__":
    sys.exit(main())
