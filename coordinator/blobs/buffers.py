"""Memory that uploads are gathered in. The process that checks them sees the same memory, and the disk is written
from it: nothing is copied for either."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress

from cipherward.durable import explained
from cipherward.errors import UnavailableError


class Buffer:
    """A part of the memory, from a page's beginning."""

    def __init__(self, memory: memoryview, offset: int) -> None:
        self._memory, self.offset = memory, offset
        self.used = 0
        """Bytes."""

    def add(self, data: bytes) -> None:
        """Copy ``data`` behind what is there; ValueError if it does not fit."""
        end = self.used + len(data)
        self._memory[self.used : end] = data
        self.used = end

    @property
    def content(self) -> memoryview:
        """What was added."""
        return self._memory[: self.used]


class Buffers:
    """So many buffers of one size. Pages that were never used cost nothing; those of ``kept`` free buffers are kept for
    the next ones, and given back to the system when no buffer is in use. Threads may share it."""

    def __init__(self, size: int, count: int, kept: int) -> None:
        """``size`` in bytes, of each; it is rounded up to pages. Raises EnvironmentProblem."""
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = self._size * count
        """Of all together."""
        with explained("make", "the memory for uploads"):
            file = os.memfd_create("cipherward-uploads", os.MFD_CLOEXEC)
            try:
                os.ftruncate(file, self.bytes)
                self._map = mmap.mmap(file, self.bytes)
                self.fd = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
                """The memory, for another process to map and read."""
            finally:
                os.close(file)
        self._memory = memoryview(self._map)
        self._warm: list[int] = []  # free, with pages
        self._cold = [number * self._size for number in reversed(range(count))]
        self._in_use, self._kept, self._lock = 0, kept, threading.Lock()

    def take(self) -> Buffer:
        """An empty buffer; UnavailableError if there is none."""
        with self._lock:
            if not self._warm and not self._cold:
                raise UnavailableError("the memory for uploads is in use", fix="Try again")
            offset = (self._warm or self._cold).pop()
            self._in_use += 1
        return Buffer(self._memory[offset : offset + self._size], offset)

    def give_back(self, buffer: Buffer) -> None:
        """It must not be used any more."""
        with self._lock:
            self._in_use -= 1
            self._warm.append(buffer.offset)
            most = self._kept if self._in_use else 0
            surplus, self._warm = self._warm[most:], self._warm[:most]
        for offset in surplus:  # one by one: other threads wait for each
            with suppress(OSError):  # a system that cannot
                self._map.madvise(mmap.MADV_REMOVE, offset, self._size)
            with self._lock:
                self._cold.append(offset)

    def close(self) -> None:
        """The memory itself goes with its last user."""
        os.close(self.fd)
