"""The process that checks what was uploaded, run by ``inspection.Inspection``. It sees the memory that uploads are
gathered in, for reading only.

Operations: ``memory`` (which), ``chunks`` (a run of them; replies nothing), ``leaves`` (a run of anything; replies the
leaf hashes). See ``RUN``.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache

from cipherward.crypto.merkle import leaf_hash
from cipherward.crypto.suites.base import SuiteParams
from cipherward.crypto.suites.registry import suite_in
from cipherward.errors import FormatError
from cipherward.ids import DIGEST_BYTES
from cipherward.isolated import serve

# Here and not in the other half, which imports much that this process has no use for.
MEMORY = struct.Struct(">IQ")
"""File descriptor, bytes."""
RUN = struct.Struct(">QIQII")
"""Where it begins in the memory, index of the first, length of the update's vector, how many, bytes of the set's name.
Behind it: the name, their sizes (u32 each), and of chunks the digests that were sent with them."""


@lru_cache(maxsize=64)
def _parameters(name: bytes) -> SuiteParams:
    package, parameter_set, bound, sites = json.loads(name)
    return suite_in(package).parameters(parameter_set, bound, sites)


class _Run:
    """Parts behind each other in the memory."""

    def __init__(self, memory: memoryview, body: bytes) -> None:
        self._at, self.first, self.length, self._count, size = RUN.unpack_from(body)
        end = RUN.size + size
        self.params = body[RUN.size : end]
        self._sizes = struct.unpack_from(f">{self._count}I", body, end)
        self._rest, self._memory = body[end + 4 * self._count :], memory

    def parts(self) -> Iterator[memoryview]:
        at = self._at
        for size in self._sizes:
            yield self._memory[at : at + size]
            at += size

    def claimed(self) -> list[bytes]:
        return [self._rest[at : at + DIGEST_BYTES] for at in range(0, len(self._rest), DIGEST_BYTES)]


class Inspector:
    """See ``inspection.Inspection``."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def memory(self, body: bytes) -> bytes:
        """Map it."""
        fd, size = MEMORY.unpack(body)
        self._memory = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        return b""

    def chunks(self, body: bytes) -> bytes:
        """Raises FormatError for the first that is wrong."""
        run = _Run(self._memory, body)
        params = _parameters(run.params)
        for index, (chunk, claimed) in enumerate(zip(run.parts(), run.claimed(), strict=True), run.first):
            if leaf_hash(chunk) != claimed:
                raise FormatError(
                    f"chunk {index} does not have the digest sent with it", why="it was damaged"
                )
            params.check_upload_chunk(chunk, index, run.length)
        return b""

    def leaves(self, body: bytes) -> bytes:
        """Of each part."""
        return b"".join(leaf_hash(part) for part in _Run(self._memory, body).parts())


def main() -> None:
    """Serve until the parent goes."""
    inspector = Inspector()
    serve({"memory": inspector.memory, "chunks": inspector.chunks, "leaves": inspector.leaves})


if __name__ == "__main__":
    main()
