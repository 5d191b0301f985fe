"""What a source of the MedMNIST tasks says: a file, and which of its patients.

    /data/own.npz                                    one hospital's file
    /data/public.npz?site=2&of=8                     the 2nd of 8 simulated sites; split=iid&seed=0 are the defaults
    /data/public.npz?site=2&of=8&split=label&alpha=0.3&seed=1
    /data/many.npz?split=column&site=St%20Mary       those whose site column says so
    medmnist:pneumoniamnist                          the public file, by the medmnist package; options as above

A path that has a question mark itself ends with another one.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from cipherward.durable import explained
from cipherward.errors import EnvironmentProblem, UsageError
from cipherward.site_agent.tasks.medmnist.sites import Choice, Column, Even, LabelSkew, Whole

_PUBLIC = "medmnist:"
_NAME = re.compile(r"[a-z]{1,32}(?:_(?:64|128|224))?\Z")
_WHOLE_NUMBER = re.compile(r"\d{1,9}\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """``file``: a path, or ``medmnist:NAME``. ``choice``: which patients."""

    file: str
    choice: Choice

    def path(self) -> Path:
        """The file's. Downloads a public one that is not here yet: raises EnvironmentProblem if that fails."""
        return (
            _download(self.file.removeprefix(_PUBLIC)) if self.file.startswith(_PUBLIC) else Path(self.file)
        )


def parse(source: str) -> Source:
    """Raises UsageError for options that do not make sense together."""
    file, mark, query = source.rpartition("?")
    if not mark:
        file, query = source, ""
    if not file or "\x00" in file:
        raise UsageError(
            "the source names no file", fix="Use PATH.npz, PATH.npz?site=1&of=4 or medmnist:NAME"
        )
    if file.startswith(_PUBLIC) and not _NAME.match(file.removeprefix(_PUBLIC)):
        raise UsageError(
            f"{file!r} is not a MedMNIST file",
            fix="Use e.g. medmnist:pneumoniamnist or medmnist:bloodmnist_64",
        )
    try:
        pairs = (
            parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
        )
    except ValueError as error:
        raise UsageError(f"the options of {file} are not NAME=VALUE&NAME=VALUE") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise UsageError(f"an option of {file} is given twice")
    return Source(file, _choice(options))


def _choice(options: Mapping[str, str]) -> Choice:
    split = options.get("split", "iid" if options else "whole")
    known = {
        "whole": (),
        "iid": ("site", "of", "seed"),
        "label": ("site", "of", "seed", "alpha"),
        "column": ("site",),
    }
    if split not in known or (split == "whole" and options):
        raise UsageError(f"there is no split {split!r}", fix="Use split=iid, split=label or split=column")
    unknown = sorted(set(options) - {"split", *known[split]})
    if unknown:
        raise UsageError(
            f"split={split} takes no option {unknown[0]!r}", fix=f"Its options are {', '.join(known[split])}"
        )
    missing = [name for name in known[split] if name not in options and name != "seed"]
    if missing:
        raise UsageError(f"split={split} needs the option {missing[0]}", fix=f"Add {missing[0]}=...")
    if split == "whole":
        return Whole()
    if split == "column":
        return Column(options["site"])
    site, of, seed = (_number(options, name) for name in ("site", "of", "seed"))
    return Even(site, of, seed) if split == "iid" else LabelSkew(site, of, _alpha(options["alpha"]), seed)


def _number(options: Mapping[str, str], name: str) -> int:
    text = options.get(name, "0")
    if not _WHOLE_NUMBER.match(text) or not text.isascii():
        raise UsageError(f"{name}={text} is not a whole number")
    return int(text)


def _alpha(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # refused as what is out of range is


def _download(name: str) -> Path:
    """The file in the package's folder, ``~/.medmnist``; fetched and compared with its MD5 the first time."""
    try:
        import medmnist
        from medmnist.info import DEFAULT_ROOT, INFO
    except ImportError as error:
        raise EnvironmentProblem(
            f"cannot fetch {_PUBLIC}{name}",
            why="the medmnist package is not installed",
            fix="Run: pip install 'cipherward[medmnist]', or give the path of a file",
        ) from error
    flag, _, size = name.partition("_")
    known = {
        one for one, info in INFO.items() if not one.endswith("3d") and "multi-label" not in info["task"]
    }
    if flag not in known:
        raise UsageError(
            f"there is no task for {_PUBLIC}{name}",
            why="it is not one of the two-dimensional files with one class a record",
            fix=f"Known are {', '.join(sorted(known))}",
        )
    if DEFAULT_ROOT is None:
        raise EnvironmentProblem("the medmnist package has no folder", fix="Make ~/.medmnist writable")
    path = Path(DEFAULT_ROOT) / f"{name}.npz"
    if path.exists():
        return path
    dataset = getattr(medmnist, INFO[flag]["python_class"], None)
    # Into a folder of its own, so that two sites may fetch it at once and none sees half a file.
    with explained("write", path.parent), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            if dataset is None:
                raise RuntimeError("the package's own dependencies are not installed")
            dataset(split="train", download=True, root=folder, size=int(size or 28))
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"cannot fetch {_PUBLIC}{name}",
                why="the medmnist package could not download it",
                fix=f"Fetch {INFO[flag]['url_' + size if size else 'url']} elsewhere and give the file's path",
            ) from error
        (Path(folder) / path.name).replace(path)
    return path
