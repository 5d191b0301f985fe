"""Merkle trees: known answers, and proofs that hold for exactly one leaf at one place."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherward.crypto import merkle
from cipherward.errors import VerificationError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "merkle_rfc9162.json").read_text())


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(entry)) for entry in VECTORS["leaves"][:size]]
    assert merkle.root(leaves).hex() == VECTORS["roots"][str(size)]


def known(size: int) -> tuple[list[bytes], bytes]:
    leaves = [merkle.leaf_hash(bytes.fromhex(entry)) for entry in VECTORS["leaves"][:size]]
    return leaves, bytes.fromhex(VECTORS["roots"][str(size)])


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda one: f"{one['leaf']} of {one['size']}")
def test_known_inclusion_proofs(vector: dict[str, Any]) -> None:
    index, size, path = vector["leaf"], vector["size"], [bytes.fromhex(one) for one in vector["path"]]
    leaves, root = known(size)
    assert merkle.prove(leaves, index) == merkle.Tree(leaves).prove(index) == path
    merkle.verify(leaves[index], index, size, path, root)
    # What the reference implementation's own tests alter.
    other = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")
    altered = [
        (leaves[index], index - 1, size, path, root),
        (leaves[index], index + 1, size, path, root),
        (leaves[index], index ^ 2, size, path, root),
        (leaves[index], index, size * 2, path, root),
        (leaves[index], index, size // 2, path, root),
        (b"WrongLeaf", index, size, path, root),
        (leaves[index], index, size, path, merkle.EMPTY_ROOT),
        (leaves[index], index, size, path, other),
        (leaves[index], index, size, path, b""),
        (leaves[index], index, size, [*path, b""], root),
        (leaves[index], index, size, [*path, root], root),
        (leaves[index], index, size, [b"", *path], root),
        (leaves[index], index, size, [root, *path], root),
        *((leaves[index], index, size, path[:at] + path[at + 1 :], root) for at in range(len(path))),
        *(
            (
                leaves[index],
                index,
                size,
                [*path[:at], bytes([path[at][0] ^ 8]) + path[at][1:], *path[at + 1 :]],
                root,
            )
            for at in range(len(path))
        ),
    ]
    for probe in altered:
        with pytest.raises(VerificationError):
            merkle.verify(*probe)


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as written there."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


@given(st.integers(1, 70), st.data())
def test_proofs_hold_for_their_leaf_only(count: int, data: st.DataObject) -> None:
    leaves = [merkle.leaf_hash(bytes([i])) for i in range(count)]
    root = merkle.root(leaves)
    assert root == recursive_root(list(leaves))
    index = data.draw(st.integers(0, count - 1))
    path = merkle.prove(leaves, index)
    tree = merkle.Tree(leaves)
    assert (tree.root, tree.prove(index), tree.count) == (root, path, count)
    assert tree.size <= 64 * count + 320
    growing = merkle.Growing()
    for number, leaf in enumerate(leaves):
        assert growing.root == merkle.root(leaves[:number]) and growing.count == number
        growing.add(leaf)
    assert growing.root == root
    with pytest.raises(IndexError):
        tree.prove(count)
    merkle.verify(leaves[index], index, count, path, root)
    for leaf, place, size, proof in (
        (merkle.leaf_hash(b"other"), index, count, path),
        (leaves[index], (index + 1) % count if count > 1 else 1, count, path),
        (leaves[index], index, count, [*path, root]),
        (leaves[index], index, count, path[:-1] if path else [root]),
        (leaves[index], index, 0, path),
    ):
        with pytest.raises(VerificationError):
            merkle.verify(leaf, place, size, proof, root)
