"""Arrays out of an ``.npz`` file that somebody else wrote, without numpy's loader: nothing is unpickled, and name,
type, shape and declared size of an array are checked before a byte of it is read. Large arrays come in blocks."""

from __future__ import annotations

import math
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cipherward.durable import explained
from cipherward.errors import UsageError

MAX_ARRAY_BYTES = 2**35
"""32 GiB: the largest MedMNIST file (PathMNIST at 224 pixels) declares half of it."""
MAX_WHOLE_BYTES = 2**30
"""Of an array that is read at once: labels, ids."""
MAX_TEXT = 256
"""Characters of a text element."""

_BLOCK_BYTES = 2**24
_DENSE = (
    2**26
)  # bytes; what is larger must not come from less than a hundredth: images do not compress so well
_RATIO = 100
_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 512  # numpy's take 118
# What numpy writes; a structured type would be a list here.
_HEADER = re.compile(
    rb"\{ *'descr': *'([<>|=])([biufSUO])(\d{1,4})', *'fortran_order': *(True|False), *"
    rb"'shape': *\(((?:\d{1,12}, *)*(?:\d{1,12})?)\),? *\} *\n?\Z"
)
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression or version that zipfile does not know
    RuntimeError,  # encrypted
    ValueError,  # a seek to before the file, a name that is no text
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One array of the file. ``start``: bytes of its header."""

    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one element along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


class Archive:
    """An open file. ``members``: each array's type and shape, by name; others than ``wanted`` are not looked at."""

    def __init__(self, path: Path, file: IO[bytes], wanted: frozenset[str]) -> None:
        """Raises UsageError if it is not a zip file, or a wanted array is not a plain one."""
        self.path = path
        self.members: dict[str, Member] = {}
        with self._readable():
            self._zip = zipfile.ZipFile(file)
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            if name in wanted and info.filename.endswith(".npy"):
                if name in self.members:
                    raise self.problem(f"there are two arrays {name}")
                self.members[name] = self._check(name, info)

    def whole(self, name: str) -> NDArray[Any]:
        """The array, C order. Raises UsageError if it is larger than MAX_WHOLE_BYTES or damaged."""
        member = self.members[name]
        if member.info.file_size > MAX_WHOLE_BYTES:
            raise self.problem(f"{name} declares {member.info.file_size} bytes, more than {MAX_WHOLE_BYTES}")
        rows = member.shape[0] if member.shape else 1
        blocks = list(self._blocks(name, max(rows, 1)))
        flat = blocks[0] if blocks else np.zeros(0, member.dtype)
        return flat.reshape(member.shape)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """The array in blocks of some rows each, in order. Raises UsageError if it is damaged."""
        member = self.members[name]
        yield from self._blocks(name, max(1, _BLOCK_BYTES // max(1, member.row_bytes)))

    def problem(self, why: str, fix: str = "") -> UsageError:
        """What is wrong with this file."""
        return UsageError(f"cannot use {self.path}", why=why, fix=fix)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            raise self.problem("it is not an .npz file, or it is damaged") from error

    def _check(self, name: str, info: zipfile.ZipInfo) -> Member:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise self.problem(f"{name} is compressed or encrypted in a way that numpy does not write")
        with self._readable(), self._zip.open(info) as stream:
            start = stream.read(10)
            length = int.from_bytes(start[8:10], "little")
            if start[:6] != _MAGIC or start[6:8] != b"\x01\x00" or length > _HEADER_BYTES:
                raise self.problem(f"{name} is not an array in numpy's format, version 1.0")
            header = _HEADER.match(stream.read(length))
        if header is None or header[2] == b"O":
            raise self.problem(f"{name} holds objects or records", "Save it as plain numbers or text")
        order, kind, size, fortran, dimensions = header.groups()
        shape = tuple(int(one) for one in dimensions.replace(b" ", b"").split(b",") if one)
        if fortran == b"True":
            raise self.problem(f"{name} is in Fortran's order", "Save numpy.ascontiguousarray of it")
        if kind in b"SU" and not 1 <= int(size) <= MAX_TEXT:
            raise self.problem(f"{name} is text of {int(size)} characters", f"{MAX_TEXT} are enough")
        try:
            dtype = np.dtype((order + kind + size).decode())
        except TypeError as error:
            raise self.problem(f"{name} has a type that numpy does not have") from error
        member = Member(info, dtype, shape, 10 + length)
        declared = member.start + dtype.itemsize * math.prod(shape)
        if declared != info.file_size:
            raise self.problem(f"{name} has not the size that its shape says")
        if declared > MAX_ARRAY_BYTES or declared > max(_DENSE, _RATIO * info.compress_size):
            raise self.problem(
                f"{name} would unpack to {declared} bytes from {info.compress_size}",
                "Images do not compress so well",
            )
        return member

    def _blocks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        member = self.members[name]
        left = math.prod(member.shape) if member.row_bytes else 0
        values = rows * math.prod(member.shape[1:])
        with self._readable(), self._zip.open(member.info) as stream:
            stream.read(member.start)
            while left > 0:
                count = min(values, left)
                content = stream.read(count * member.dtype.itemsize)
                if len(content) != count * member.dtype.itemsize:
                    raise self.problem(f"{name} ends early")
                left -= count
                block = np.frombuffer(content, member.dtype)
                yield block.reshape(-1, *member.shape[1:])
            stream.read(1)  # the end: only now the checksum is compared


@contextmanager
def opened(path: Path, wanted: frozenset[str]) -> Iterator[Archive]:
    """The file, checked. Raises EnvironmentProblem if it cannot be read, UsageError as ``Archive``."""
    with explained("read", path):
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for its writer
            raise UsageError(f"cannot use {path}", why="it is not a file")
        with path.open("rb") as file:
            yield Archive(path, file, wanted)
