"""Who may import whom. Two ways: by reading every import statement, and by importing in a fresh process and
looking at what was loaded. Both are shown to find what they look for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = ("proto", "crypto", "coordinator", "site_agent", "evaluation")
BASE = ("ids", "clock", "errors", "durable", "database", "isolated", "monitoring", "__init__")
# Which part may import which, besides itself.
ALLOWED = {
    "base": {"base"},
    "proto": {"base", "proto"},
    "crypto": {"base", "proto", "crypto"},
    "coordinator": {"base", "proto", "crypto", "coordinator"},
    "site_agent": {"base", "proto", "crypto", "site_agent"},
    "evaluation": {"base", "proto", "crypto", "coordinator", "site_agent", "evaluation", "cli"},
    "cli": {"base", "proto", "crypto", "coordinator", "site_agent", "evaluation", "cli"},
}
# Modules that can hold a secret decryption key.
KEYS = (
    "cipherward.crypto.sealing",
    "cipherward.crypto.pki.site_keys",
    "cipherward.crypto.suites.site_side",
    "cipherward.crypto.shared_key.site",
    "cipherward.crypto.shared_key.keys",
    "cipherward.crypto.shared_key.native_keys",
    "cipherward.crypto.quorum.chunks",
    "cipherward.crypto.quorum.cipher",
    "cipherward.crypto.quorum.key",
    "cipherward.crypto.quorum.ring",
    "cipherward.crypto.quorum.sampling",
    "cipherward.crypto.quorum.sealed",
    "cipherward.crypto.quorum.shamir",
    "cipherward.crypto.quorum.site",
    "cipherward.crypto.pki.consortium_folder",
    "cipherward.crypto.shared_key.site_worker",
    "cipherward.site_agent",
)
# Native CKKS code: in worker processes only.
NATIVE = (
    "cipherward.crypto.shared_key.native",
    "cipherward.crypto.shared_key.add_worker",
    "tenseal",
    "_tenseal_cpp",
    "_sealapi_cpp",
)
HEAVY = ("torch", "opacus")
MAY_TRAIN = ("cipherward.site_agent.training", "cipherward.site_agent.tasks", "cipherward.evaluation")


def module_name(path: Path, tree: Path = ROOT) -> str:
    relative = path.relative_to(tree)
    parts = relative.parts[2:] if relative.parts[0] == "src" else relative.parts
    name = ".".join(("cipherward", *parts)).removesuffix(".py")
    return name.removesuffix(".__init__")


def sources(tree: Path = ROOT) -> Iterator[Path]:
    for root in (*ROOTS, "src/cipherward"):
        yield from sorted(path for path in (tree / root).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> set[str]:
    """Every module that the file names in an import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(module: str) -> str | None:
    """Which part of the project a module belongs to; None if to none."""
    names = module.split(".")
    if names[0] != "cipherward":
        return None
    if len(names) == 1 or names[1] in BASE or names[1].startswith("__"):
        return "base"
    return names[1] if names[1] in ALLOWED else "base"


def wrong_directions(tree: Path) -> list[str]:
    wrong = []
    for path in sources(tree):
        module = module_name(path, tree)
        part = part_of(module)
        assert part is not None
        for imported in imports(path):
            other = part_of(imported)
            if other is not None and other not in ALLOWED[part]:
                wrong.append(f"{module} imports {imported}")
    return wrong


def test_dependencies_point_one_way() -> None:
    assert len(list(sources())) > 60
    assert wrong_directions(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("crypto/leaky.py", "from cipherward.coordinator.store import database"),
        ("coordinator/api/leaky.py", "def f():\n    import cipherward.site_agent.client"),
        ("site_agent/leaky.py", "from cipherward import coordinator"),
        ("src/cipherward/leaky.py", "from cipherward.crypto.labels import Label"),
    ],
)
def test_the_reading_finds_a_wrong_import(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    (found,) = {one.split(" imports ")[0] for one in wrong_directions(tmp_path)}
    assert found == module_name(path, tmp_path)


def test_only_training_and_evaluation_name_torch() -> None:
    wrong = [
        f"{module_name(path)} imports {imported}"
        for path in sources()
        if not module_name(path).startswith(MAY_TRAIN)
        for imported in imports(path)
        if imported.split(".")[0] in HEAVY
    ]
    assert wrong == []


def loaded_by(modules: list[str]) -> set[str]:
    """What a fresh interpreter has loaded after importing ``modules``."""
    code = (
        "import sys, json, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "json.dump(sorted(sys.modules), sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def belongs(loaded: set[str], names: tuple[str, ...]) -> list[str]:
    return sorted(m for m in loaded if any(m == name or m.startswith(f"{name}.") for name in names))


def coordinator_modules() -> list[str]:
    return [
        module_name(path)
        for path in sources()
        if path.is_relative_to(ROOT / "coordinator") and "migrations" not in path.parts
    ]


def test_the_serving_process_loads_no_key_no_native_code_no_torch() -> None:
    suites = ["cipherward.crypto.shared_key.public", "cipherward.crypto.quorum.public"]
    loaded = loaded_by([*coordinator_modules(), *suites])
    assert "cipherward.coordinator.daemon.service" in loaded
    assert belongs(loaded, (*KEYS, *NATIVE, *HEAVY)) == []


def test_the_process_that_adds_ciphertexts_loads_no_key() -> None:
    loaded = loaded_by(["cipherward.crypto.shared_key.add_worker"])
    assert belongs(loaded, NATIVE)
    assert belongs(loaded, KEYS) == []


def test_the_loading_finds_keys_and_native_code() -> None:
    loaded = loaded_by(["cipherward.crypto.suites.site_side", "cipherward.crypto.pki.site_keys"])
    assert belongs(loaded, KEYS) == [
        "cipherward.crypto.pki.site_keys",
        "cipherward.crypto.sealing",
        "cipherward.crypto.suites.site_side",
    ]
    assert belongs(loaded_by(["tenseal"]), ("tenseal",))


def test_all_modules_that_hold_keys_are_listed() -> None:
    """A module of crypto that imports one on the list can hold a key itself."""
    unlisted = [
        module_name(path)
        for path in sources()
        if path.is_relative_to(ROOT / "crypto")
        and belongs(imports(path), KEYS)
        and module_name(path) not in KEYS
    ]
    assert unlisted == []


def test_the_site_agent_and_the_command_line_load_no_torch() -> None:
    agent = [
        module_name(path)
        for path in sources()
        if path.is_relative_to(ROOT / "site_agent")
        and not module_name(path).startswith(MAY_TRAIN)
        and "migrations" not in path.parts
    ]
    loaded = loaded_by([*agent, "cipherward.cli.app", "cipherward.cli.study"])
    assert "cipherward.site_agent.client.coordinator" in loaded
    assert belongs(loaded, HEAVY) == []
    assert belongs(loaded, ("cipherward.coordinator",)) == []
