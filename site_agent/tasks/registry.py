"""Finding installed tasks, and the digest that pins their code. Nothing of a plug-in runs to compute its
digest: what has not been checked must not be executed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from cipherward.crypto.labels import Label, digest
from cipherward.durable import read_file
from cipherward.errors import UsageError, VerificationError
from cipherward.ids import Digest
from cipherward.site_agent.tasks.base import Task

GROUP = "cipherward.tasks"
SOURCE_SUFFIXES = frozenset({".py", ".csv", ".tsv", ".json", ".toml", ".yaml", ".yml"})
"""Code and the data or schema files that it reads. Compiled caches, licences and notes do not count."""
COMPILED_SUFFIXES = frozenset(Path(f"x{end}").suffix for end in (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES))
"""Of modules that Python imports as they are; an extension even before a source file of the same name."""


def names() -> list[str]:
    """The installed tasks' names, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def entry_point(name: str) -> EntryPoint:
    """Where the task lives. Raises UsageError if none or several installed packages provide it."""
    found = list(dict.fromkeys(entry_points(group=GROUP, name=name)))
    if not found:
        raise UsageError(
            f"there is no task {name!r}",
            why=f"installed here are: {', '.join(names()) or 'none'}",
            fix=f"Install the package that provides it (entry-point group {GROUP})",
        )
    if len({entry.value for entry in found}) > 1:
        raise UsageError(
            f"the task {name!r} is ambiguous",
            why=f"it is provided by {' and '.join(sorted({entry.value for entry in found}))}",
            fix="Uninstall all but one of the packages",
        )
    return found[0]


def find(name: str) -> Task:
    """The task, ready for use. Runs the plug-in's code: compare its digest first.

    Raises UsageError if it is missing, does not import, or is not a Task.
    """
    entry = entry_point(name)
    package = _package(entry)
    if not any(isinstance(finder, _FromSource) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.insert(0, _FromSource(package))
    try:
        task = entry.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the task {name!r} cannot be loaded",
            why=str(error),
            fix=f"Reinstall the package of {entry.value}",
        ) from error
    if not isinstance(task, Task):
        raise UsageError(
            f"{entry.value} is not a task",
            why="it does not derive from cipherward.site_agent.tasks.base.Task",
        )
    return task


def task_digest(name: str) -> Digest:
    """What the manifest and the hospital's policy pin: SHA-256 over the task's name, the object that the
    entry point names, and every source file and compiled module of its package (path relative to it and content,
    sorted by path).

    The package is the folder of the module that the entry point names, with its subfolders; for a module
    outside any package, that one file. Code that it imports from elsewhere is not covered. torch is not
    loaded. Raises UsageError if the task is missing.
    """
    entry = entry_point(name)
    root, files = _sources(entry)
    parts = [name.encode(), entry.attr.encode()]
    for path in files:
        parts += [path.relative_to(root).as_posix().encode(), read_file(path)]
    return digest(Label.TASK_DIGEST, *parts)


def check_digest(name: str, expected: bytes) -> None:
    """Raises VerificationError unless the installed code of the task is the one expected."""
    actual = task_digest(name)
    if actual != expected:
        raise VerificationError(
            f"the code of task {name!r} is not what the study names",
            why=f"its digest here is {actual.hex()[:16]}..., expected {expected.hex()[:16]}...",
            fix="Install the version of the task that the study was signed with",
        )


class _SourceLoader(SourceFileLoader):
    """Compiles the source each time. A cache beside it, whose date and size anybody can make fit, is code that no
    digest covers."""

    def path_stats(self, path: object) -> NoReturn:
        """Without these the import system neither reads nor writes a cache."""
        raise OSError("compiled caches of tasks are not used")


class _FromSource(MetaPathFinder):
    """Imports a task's package from what its digest covers."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _FromSource):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if type(spec.loader) is SourceFileLoader:
                    spec.loader = _SourceLoader(fullname, spec.loader.path)
                return spec
        return None


def _package(entry: EntryPoint) -> str:
    """The name of what ``_sources`` lists."""
    spec = _spec(entry.module)
    if (spec is not None and spec.submodule_search_locations is not None) or "." not in entry.module:
        return entry.module
    return entry.module.rpartition(".")[0]


def _sources(entry: EntryPoint) -> tuple[Path, list[Path]]:
    spec = _spec(entry.module)
    if spec is None or spec.origin is None or not spec.has_location:
        raise UsageError(
            f"the source of task {entry.name!r} is not found", why=f"the module {entry.module} has no file"
        )
    module = Path(spec.origin)
    if spec.submodule_search_locations is None and "." not in entry.module:
        return module.parent, [module]
    files = (
        path
        for path in module.parent.rglob("*")
        if path.suffix in SOURCE_SUFFIXES | COMPILED_SUFFIXES
        and "__pycache__" not in path.parts
        and path.is_file()
    )
    return module.parent, sorted(files, key=lambda path: path.relative_to(module.parent).as_posix())


def _spec(module: str) -> ModuleSpec | None:
    """As ``importlib.util.find_spec``, which would import (and so run) the parent packages."""
    spec: ModuleSpec | None = None
    locations = None
    parents = module.split(".")
    for depth in range(1, len(parents) + 1):
        full_name = ".".join(parents[:depth])
        if depth > 1:
            if spec is None or spec.submodule_search_locations is None:
                return None
            locations = list(spec.submodule_search_locations)
        candidates = (finder.find_spec(full_name, locations) for finder in sys.meta_path)
        spec = next((found for found in candidates if found is not None), None)
    return spec
