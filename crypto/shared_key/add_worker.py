"""The process that adds up ciphertexts, run by ``adder.SharedKeyAdder``. It never has a key.

Operations: ``set`` (name of the parameter set), ``begin`` (index u32, length u64), ``add`` (an upload
chunk), ``finish`` (replies the sum chunk).
"""

from __future__ import annotations

from typing import Any

from cipherward.crypto.shared_key.chunks import pack_sum, parse_upload
from cipherward.crypto.shared_key.native import SealContext
from cipherward.crypto.shared_key.params import parameters
from cipherward.crypto.shared_key.wire import PLACE
from cipherward.errors import ProtocolError, VerificationError
from cipherward.isolated import serve


class Adder:
    """The running sum of one chunk: as many native ciphertexts as the chunk has, however many are added."""

    def __init__(self) -> None:
        self._seal: SealContext | None = None
        self._index = self._length = 0
        self._sum: list[Any] = []
        self._seeds: set[bytes] = set()

    def choose(self, body: bytes) -> bytes:
        """Set up SEAL for the named set."""
        self._seal = SealContext(parameters(body.decode()))
        return b""

    def begin(self, body: bytes) -> bytes:
        """Forget what was added and start on another chunk."""
        self._index, self._length = PLACE.unpack(body)
        self._sum, self._seeds = [], set()
        return b""

    def add(self, body: bytes) -> bytes:
        """Add one contributor's chunk, after checking all of its structure."""
        native = self._native()
        uploads = parse_upload(native.params, body, self._index, self._length)
        what = f"upload chunk {self._index}"
        # 16 bytes of a random 64-byte seed tell contributors apart, and at most 1,000 are kept.
        mark = uploads[0].seed[:16]
        if mark in self._seeds:
            raise VerificationError(f"{what} is refused", why="another contributor's has the same seed")
        self._seeds.add(mark)
        first = not self._sum
        for number, upload in enumerate(uploads):
            ciphertext = native.from_upload(upload, f"{what}, ciphertext {number}")
            if first:
                self._sum.append(ciphertext)
            else:
                native.evaluator.add_inplace(self._sum[number], ciphertext)
        return b""

    def finish(self, _body: bytes) -> bytes:
        """The sum chunk."""
        native = self._native()
        return pack_sum(native.params, [native.to_sum(one) for one in self._sum], self._index)

    def _native(self) -> SealContext:
        if self._seal is None:
            raise ProtocolError("the adding process was asked to work before it knew the parameter set")
        return self._seal


def main() -> None:
    """Serve until the parent goes."""
    adder = Adder()
    serve({"set": adder.choose, "begin": adder.begin, "add": adder.add, "finish": adder.finish})


if __name__ == "__main__":
    main()
