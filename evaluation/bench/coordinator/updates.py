"""What sites upload, made before the measurement: upload messages as bytes, in files that client processes map into
memory. So clients spend nothing on encrypting, and the same on serialising for whatever server they send to."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.merkle import leaf_hash, root
from cipherward.crypto.quorum_records import SEALED_SHARE_BYTES
from cipherward.crypto.suites.base import StudyKey, SuiteParams
from cipherward.crypto.suites.site_side import one_time_key_side, study_key_side
from cipherward.proto.v1.coordinator_pb2 import ShareMessage, UploadMessage

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Update:
    """One upload without its header."""

    path: str
    chunk_count: int
    ciphertext_root: bytes
    share_root: bytes
    """Quorum; else empty."""
    data_bytes: int
    """Of chunks and shares: what a coordinator stores."""

    def messages(self) -> Iterator[bytes]:
        """Serialised ``UploadMessage``s."""
        with (
            Path(self.path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            at = 0
            while at < len(content):
                (size,) = _LENGTH.unpack_from(content, at)
                at += _LENGTH.size
                yield content[at : at + size]
                at += size

    def chunks(self) -> Iterator[bytes]:
        """The ciphertexts."""
        for index, raw in enumerate(self.messages()):
            if index == self.chunk_count:
                return
            yield UploadMessage.FromString(raw).data


def stored_chunks(path: str, count: int) -> list[bytes]:
    """The ``count`` chunks of a file that ``write_update`` wrote."""
    return list(Update(path, count, b"", b"", 0).chunks())


def vector(number: int, length: int) -> NDArray[np.float32]:
    """The made-up update of site ``number``; the last value is the constant 1."""
    made = np.random.default_rng(number).uniform(-1, 1, length).astype(np.float32)  # data, not a key
    made[-1] = 1.0
    return made


def exact_sum(numbers: Iterable[int], length: int) -> NDArray[np.float64]:
    """Of those sites' updates."""
    total = np.zeros(length)
    for number in numbers:
        total += vector(number, length)
    return total


def write_update(path: Path, chunks: Iterable[bytes], shares: Sequence[bytes] = ()) -> Update:
    """One upload's file."""
    leaves, size = [], 0

    def messages() -> Iterator[UploadMessage]:
        nonlocal size
        for index, chunk in enumerate(chunks):
            leaves.append(leaf_hash(chunk))
            size += len(chunk)
            yield UploadMessage(index=index, data=chunk, leaf_hash=leaves[-1])
        for index, sealed in enumerate(shares):
            size += len(sealed)
            yield UploadMessage(share=ShareMessage(index=index, sealed=sealed))

    with path.open("wb") as file:
        for message in messages():
            raw = message.SerializeToString()
            file.write(_LENGTH.pack(len(raw)) + raw)
    share_root = root([leaf_hash(sealed) for sealed in shares]) if shares else b""
    return Update(str(path), len(leaves), root(leaves), share_root, size)


def quorum_updates(
    folder: Path, params: SuiteParams, length: int, members: int, different: int
) -> list[Update]:
    """``different`` encrypted updates under one-time keys. What stands for the sealed shares is random bytes: no
    coordinator can tell, and nobody opens these."""
    side, made = one_time_key_side(params.suite), []
    for number in range(different):
        with side.cipher(side.generate_key(params, os.urandom(32)), b"bench") as cipher:
            shares = [os.urandom(SEALED_SHARE_BYTES) for _ in range(members)]
            made.append(
                write_update(folder / f"update-{number}", cipher.encrypt(vector(number, length)), shares)
            )
    return made


def shared_key_updates(
    folder: Path, params: SuiteParams, length: int, sites: int
) -> tuple[StudyKey, list[Update]]:
    """One encrypted update for each site, and the key that opens their sum."""
    side = study_key_side(params.suite)
    key = side.generate_key(params)
    with side.cipher(key, b"") as cipher:
        return key, [
            write_update(folder / f"update-{number}", cipher.encrypt(vector(number, length)))
            for number in range(sites)
        ]
