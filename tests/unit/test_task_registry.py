"""Finding task plug-ins and pinning their code, on real installed packages (folders with their metadata)."""

from __future__ import annotations

import importlib
import os
import py_compile
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from cipherward.errors import UsageError, VerificationError
from cipherward.site_agent.tasks import registry
from cipherward.site_agent.tasks.heart_disease import HeartDisease


def install(folder: Path, name: str, target: str, files: dict[str, str]) -> None:
    """What pip leaves behind: the files, and metadata that names the entry point."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / f"{target.split(':')[0].replace('.', '_')}_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.name[:-13]}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cipherward.tasks]\n{name} = {target}\n")


BOOM = "raise RuntimeError('plug-in code ran')\n"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_built_in_task_is_found() -> None:
    assert "heart-disease" in registry.names()
    assert isinstance(registry.find("heart-disease"), HeartDisease)
    registry.check_digest("heart-disease", registry.task_digest("heart-disease"))


def test_a_missing_task_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no task 'nope'.*heart-disease"):
        registry.task_digest("nope")


def test_the_digest_runs_no_code_of_the_plugin(plugins: Path) -> None:
    install(plugins, "boom", "boom_pkg.inner.task:Boom", {
        "boom_pkg/__init__.py": BOOM, "boom_pkg/inner/__init__.py": BOOM, "boom_pkg/inner/task.py": BOOM,
    })  # fmt: skip
    assert len(registry.task_digest("boom")) == 32
    assert not [name for name in sys.modules if name.startswith("boom_pkg")]
    with pytest.raises(RuntimeError, match="plug-in code ran"):
        registry.find("boom")


def test_the_digest_covers_every_source_file_and_its_name(plugins: Path) -> None:
    files = {"own/__init__.py": "", "own/task.py": "x = 1", "own/sub/schema.json": "{}"}
    install(plugins, "own", "own.task:Own", files)
    seen = {registry.task_digest("own")}

    def changed() -> bool:
        before = len(seen)
        seen.add(registry.task_digest("own"))
        return len(seen) > before

    (plugins / "own/task.py").write_text("x = 2")
    assert changed()
    (plugins / "own/sub/schema.json").write_text("[]")
    assert changed()
    (plugins / "own/extra.py").write_text("")
    assert changed()
    (plugins / "own/extra.py").rename(plugins / "own/other.py")
    assert changed()
    (plugins / "own/README.md").write_text("notes do not count")
    (plugins / "own/__pycache__").mkdir()
    (plugins / "own/__pycache__/task.py").write_text("nor do caches")
    assert not changed()


@pytest.mark.parametrize("ending", [EXTENSION_SUFFIXES[0], ".abi3.so", ".pyc"])
def test_the_digest_covers_compiled_modules(plugins: Path, ending: str) -> None:
    """Python would import an extension in the place of the source file that the hospital read."""
    install(
        plugins, "own", "own.task:Own", {"own/__init__.py": "", "own/task.py": "x = 1", "own/inner.py": ""}
    )
    before = registry.task_digest("own")
    (plugins / f"own/inner{ending}").write_bytes(b"\x7fELF")
    assert registry.task_digest("own") != before


@pytest.mark.parametrize("module", ["sly.task", "sly"])
def test_a_compiled_cache_does_not_run_in_the_place_of_the_source(plugins: Path, module: str) -> None:
    """It fits the source's date and size, as whoever packs a wheel can make it, and no digest covers it."""
    source = (
        "from cipherward.site_agent.tasks.heart_disease import HeartDisease as Sly\nread = 'what was read'\n"
    )
    files = {"sly/__init__.py": "", "sly/task.py": source, "sly/late.py": "read = 'what was read'\n"}
    if module == "sly":
        files["sly/__init__.py"] = source
    install(plugins, "sly", f"{module}:Sly", files)
    before = registry.task_digest("sly")
    for path in [plugins / "sly/late.py", (plugins / f"{module.replace('.', '/')}.py")]:
        path = path if path.exists() else plugins / "sly/__init__.py"
        text, date = path.read_text(), path.stat().st_mtime
        path.write_text(text.replace("what was read", "what was hidd"))
        os.utime(path, (date, date))
        py_compile.compile(str(path))
        path.write_text(text)
        os.utime(path, (date, date))
    try:
        assert registry.task_digest("sly") == before
        registry.find("sly")
        for name in (module, "sly.late"):
            assert importlib.import_module(name).read == "what was read"
    finally:
        for name in ("sly", "sly.task", "sly.late"):
            sys.modules.pop(name, None)


def test_the_digest_depends_on_the_object_and_not_on_the_place(plugins: Path, tmp_path: Path) -> None:
    files = {"one/__init__.py": "", "one/task.py": "class A: ...\nclass B: ..."}
    install(plugins, "a", "one.task:A", files)
    install(plugins, "b", "one.task:B", {})
    assert registry.task_digest("a") != registry.task_digest("b")
    install(plugins, "single", "single_file:Task", {"single_file.py": "x = 1"})
    first = registry.task_digest("single")
    (plugins / "unrelated.py").write_text("")
    assert registry.task_digest("single") == first


def test_other_code_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"is not what the study names.*its digest here is"):
        registry.check_digest("heart-disease", bytes(32))


def test_an_ambiguous_name_is_refused(plugins: Path) -> None:
    install(plugins, "twice", "first.task:A", {"first/__init__.py": "", "first/task.py": ""})
    install(plugins, "twice", "second.task:A", {"second/__init__.py": "", "second/task.py": ""})
    with pytest.raises(UsageError, match=r"ambiguous.*first\.task:A and second\.task:A"):
        registry.entry_point("twice")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
        ("", "has no attribute"),
        ("class Plug: ...\n", "is not a task"),
        ("from cipherward.site_agent.tasks.base import Task\nclass Plug(Task): ...\n", "abstract"),
    ],
)
def test_what_is_not_a_task_is_explained(
    plugins: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    install(plugins, "plug", "plug_module:Plug", {"plug_module.py": code})
    monkeypatch.delitem(sys.modules, "plug_module", raising=False)
    with pytest.raises(UsageError, match=problem):
        registry.find("plug")


def test_metadata_without_code_is_explained(plugins: Path) -> None:
    install(plugins, "ghost", "ghost.task:Ghost", {})
    with pytest.raises(UsageError, match="source of task 'ghost' is not found"):
        registry.task_digest("ghost")


def test_the_daemons_imports_load_no_torch() -> None:
    code = (
        "import sys; from cipherward.site_agent.tasks import base, registry, splits;"
        "from cipherward.site_agent.tasks.heart_disease import defaults;"
        "from cipherward.site_agent.training import client, constants, metrics, protocol;"
        "registry.find('heart-disease'); registry.task_digest('heart-disease');"
        "sys.exit([name for name in ('torch', 'opacus', 'scipy') if name in sys.modules] or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
