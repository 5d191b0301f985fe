"""Memory that uploads are gathered in. The process that checks them sees the same memory, and the disk is written
from it: nothing is copied for either."""

from __future__ import annotations

import mmap
import os
import threading

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
    """So many buffers of one size. Pages that were never used cost nothing, and all go back to the system when no
    buffer is in use. Threads may share it."""

    def __init__(self, size: int, count: int) -> None:
        """``size`` in bytes, of each; it is rounded up to pages."""
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = self._size * count
        """Of all together."""
        file = os.memfd_create("cipherward-uploads", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, self.bytes)
            self._map = mmap.mmap(file, self.bytes)
            self.fd = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
            """The memory, for another process to map and read."""
        finally:
            os.close(file)
        self._memory = memoryview(self._map)
        self._free = [number * self._size for number in reversed(range(count))]
        self._count, self._lock = count, threading.Lock()

    def take(self) -> Buffer:
        """An empty buffer; UnavailableError if there is none."""
        with self._lock:
            if not self._free:
                raise UnavailableError("the memory for uploads is in use", fix="Try again")
            offset = self._free.pop()
        return Buffer(self._memory[offset : offset + self._size], offset)

    def give_back(self, buffer: Buffer) -> None:
        """It must not be used any more."""
        with self._lock:
            self._free.append(buffer.offset)
            if len(self._free) == self._count:
                self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """The memory itself goes with its last user."""
        os.close(self.fd)
