"""Merkle tree hashing and inclusion proofs of RFC 9162, sections 2.1.1 to 2.1.3, with SHA-256."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cipherward.errors import VerificationError
from cipherward.ids import DIGEST_BYTES, Digest

EMPTY_ROOT = Digest(hashlib.sha256(b"").digest())


def leaf_hash(entry: bytes | memoryview) -> Digest:
    """Hash of one entry; the 0x00 prefix keeps leaves and nodes apart."""
    hasher = hashlib.sha256(b"\x00")
    hasher.update(entry)
    return Digest(hasher.digest())


def node_hash(left: bytes, right: bytes) -> Digest:
    """Hash of an inner node."""
    return Digest(hashlib.sha256(b"\x01" + left + right).digest())


def _split(count: int) -> int:
    """The largest power of two smaller than ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def root(leaves: Sequence[bytes]) -> Digest:
    """Root of the tree over leaf *hashes* (32 bytes each), in order."""
    if not leaves:
        return EMPTY_ROOT
    # Level by level, an odd last node moves up unchanged: the same tree as the RFC's recursive definition.
    level = [Digest(bytes(leaf)) for leaf in leaves]
    while len(level) > 1:
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + ([level[-1]] if len(level) % 2 else [])
    return level[0]


class Growing:
    """The root over leaf hashes that come one by one, in memory that grows with the logarithm of their number."""

    __slots__ = ("_peaks", "count")

    def __init__(self) -> None:
        self._peaks: list[Digest] = []  # roots of perfect trees, each larger than the next
        self.count = 0
        """Leaves so far."""

    def add(self, leaf: bytes) -> None:
        """The next leaf's hash, 32 bytes."""
        node, count = Digest(bytes(leaf)), self.count
        while count & 1:
            node = node_hash(self._peaks.pop(), node)
            count >>= 1
        self._peaks.append(node)
        self.count += 1

    @property
    def root(self) -> Digest:
        """As ``root`` gives it."""
        if not self._peaks:
            return EMPTY_ROOT
        *larger, node = self._peaks
        for peak in reversed(larger):
            node = node_hash(peak, node)
        return node


class Tree:
    """The tree over leaf hashes, all its levels packed: for many proofs under one root. 64 bytes a leaf."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """``leaves`` are hashes of 32 bytes, at least one."""
        level = b"".join(leaves)
        self._levels = [level]
        while len(level) > DIGEST_BYTES:
            step, whole = 2 * DIGEST_BYTES, len(level) // (2 * DIGEST_BYTES) * 2 * DIGEST_BYTES
            pairs = (hashlib.sha256(b"\x01" + level[at : at + step]).digest() for at in range(0, whole, step))
            level = b"".join(pairs) + level[whole:]
            self._levels.append(level)

    @property
    def count(self) -> int:
        """Leaves."""
        return len(self._levels[0]) // DIGEST_BYTES

    @property
    def size(self) -> int:
        """Bytes that the levels take."""
        return sum(map(len, self._levels))

    @property
    def root(self) -> Digest:
        """As ``root`` gives it."""
        return Digest(self._levels[-1])

    def prove(self, index: int) -> list[Digest]:
        """As ``prove`` gives it."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        path = []
        for level in self._levels[:-1]:
            at = (index ^ 1) * DIGEST_BYTES
            if at < len(level):  # else the last node of an odd level, which moves up unchanged
                path.append(Digest(level[at : at + DIGEST_BYTES]))
            index >>= 1
        return path


def prove(leaves: Sequence[bytes], index: int) -> list[Digest]:
    """Audit path for leaf ``index``, from the leaf upwards (RFC 9162, 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*prove(leaves[:k], index), root(leaves[k:])]
    return [*prove(leaves[k:], index - k), root(leaves[:k])]


def verify(leaf: bytes, index: int, count: int, path: Sequence[bytes], expected_root: bytes) -> None:
    """Check an audit path (RFC 9162, 2.1.3.2); raises VerificationError."""
    bad = VerificationError(
        "an inclusion proof does not hold", why=f"leaf {index} of {count} is not under the root"
    )
    if not 0 <= index < count:
        raise bad
    fn, sn, computed = index, count - 1, bytes(leaf)
    for sibling in path:
        if sn == 0 or len(sibling) != 32:
            raise bad
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            computed = node_hash(computed, sibling)
        fn >>= 1
        sn >>= 1
    if sn != 0 or not hmac.compare_digest(computed, expected_root):
        raise bad
