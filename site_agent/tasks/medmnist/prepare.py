"""``python -m cipherward.site_agent.tasks.medmnist.prepare IMAGES.npz FEATURES.npz``: the features of a file's images,
computed once. A trainer's job loads its data anew each round; from the file of features that takes a moment."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from cipherward.durable import TEMPORARY, discard, explained, fsync_directory
from cipherward.errors import CipherwardError, UsageError
from cipherward.site_agent.tasks.medmnist.extractor import VERSION, Extractor
from cipherward.site_agent.tasks.medmnist.files import CLASSES, FEATURES, WANTED, check, index, present
from cipherward.site_agent.tasks.medmnist.npz import Archive, opened
from cipherward.site_agent.tasks.medmnist.sites import Whole
from cipherward.site_agent.tasks.medmnist.source import parse

_BATCH = 32
_SAY_EVERY = 5.0
_EXAMPLE = """example:
  python -m cipherward.site_agent.tasks.medmnist.prepare xrays.npz xrays-features.npz

IMAGES may be medmnist:NAME too. FEATURES.npz is for the tasks medmnist-head and medmnist-binary-head, with the same
options (?site=1&of=4). It says as much about patients as the images do: it is written readable by you only."""

Say = Callable[[str], None]


def prepare(images: str, features: Path, say: Say) -> None:
    """Write the features of every record of ``images``, with labels, patient ids and sites, to a new file.

    Replaces ``features`` as a whole or not at all. Raises UsageError for a malformed file or one with options,
    EnvironmentProblem if something cannot be read or written, or the extractor is not installed.
    """
    source = parse(images)
    if source.choice != Whole():
        raise UsageError(
            "prepare takes a whole file", fix="Give the options to the task that uses the features"
        )
    path = source.path()
    if features.exists() and features.samefile(path):
        raise UsageError("the features would replace the images", fix="Name another file")
    with opened(path, WANTED) as archive:
        check(archive, "images")
        extractor = Extractor()
        with _replacing(features) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
            _array(out, "extractor", np.array(VERSION))
            for part in present(archive, "images"):
                found = index(archive, part, "images", CLASSES)
                _array(out, f"{part}_labels", found.labels)
                _array(
                    out,
                    f"{part}_patients",
                    np.array(found.patients or [""]).reshape(-1)[: len(found.patients)],
                )
                if found.sites is not None:
                    _array(out, f"{part}_sites", np.array(found.sites))
                _features(out, archive, part, extractor, say)


def _features(out: zipfile.ZipFile, archive: Archive, part: str, extractor: Extractor, say: Say) -> None:
    total = archive.members[f"{part}_images"].shape[0]
    began, said, done = time.monotonic(), 0.0, 0
    with _member(out, f"{part}_features", "<f4", (total, FEATURES)) as stream:
        for block in archive.blocks(f"{part}_images"):
            for start in range(0, len(block), _BATCH):
                batch = block[start : start + _BATCH]
                stream.write(extractor.features(batch).astype("<f4").tobytes())
                done += len(batch)
                seconds = time.monotonic() - began
                if seconds >= said + _SAY_EVERY or done == total:
                    said = seconds
                    say(f"{part}: {done} of {total} images, {seconds:.0f} s, {_left(seconds, done, total)}")


def _left(seconds: float, done: int, total: int) -> str:
    return "done" if done == total else f"about {seconds / done * (total - done):.0f} s left"


def _array(out: zipfile.ZipFile, name: str, values: np.ndarray[Any, np.dtype[Any]]) -> None:
    with _member(out, name, values.dtype.str, values.shape) as stream:
        stream.write(values.tobytes())


@contextmanager
def _member(out: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """An array to be written behind its header. The same content gives the same bytes: no time of day."""
    with out.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets the name ``path`` when all is written and on the disk, and goes away otherwise."""
    with explained("write", path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            discard(temporary)
            raise
        fsync_directory(path.parent)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cipherward.site_agent.tasks.medmnist.prepare",
        description="Compute the features of a MedMNIST-format file's images, once.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGES.npz", help="the file of images")
    parser.add_argument("features", metavar="FEATURES.npz", type=Path, help="the file to write")
    options = parser.parse_args()
    try:
        prepare(options.images, options.features, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    except CipherwardError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
