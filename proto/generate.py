"""Generates the committed Python code from v1/*.proto; ``--check`` only says whether it is up to date.

The include path maps ``cipherward/proto`` to this folder, so that generated imports read
``from cipherward.proto.v1 import ...``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = sorted((HERE / "v1").glob("*.proto"))


def generate(out: Path) -> Path:
    """Run protoc into ``out``; returns the folder with the generated files."""
    names = [f"cipherward/proto/v1/{source.name}" for source in SOURCES]
    scripts = Path(sys.executable).parent
    subprocess.run(  # noqa: S603 - our own arguments
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-Icipherward/proto={HERE}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}", f"--mypy_out={out}", *names,
        ],
        check=True,
    )  # fmt: skip
    subprocess.run(  # noqa: S603
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-Icipherward/proto={HERE}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", "cipherward/proto/v1/coordinator.proto",
        ],
        check=True,
    )  # fmt: skip
    return out / "cipherward" / "proto" / "v1"


def main() -> int:
    """Generate in place, or compare."""
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
        files = sorted(path.name for path in made.iterdir())
        if "--check" not in sys.argv:
            for name in files:
                shutil.copyfile(made / name, HERE / "v1" / name)
            return 0
        old = sorted(path.name for path in (HERE / "v1").glob("*_pb2*") if path.suffix in {".py", ".pyi"})
        stale = sorted(set(files) ^ set(old)) + [
            name
            for name in files
            if name in old and (made / name).read_bytes() != (HERE / "v1" / name).read_bytes()
        ]
    if stale:
        sys.stderr.write(f"generated code is out of date: {', '.join(stale)}; run: make proto\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
