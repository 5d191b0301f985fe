"""ChaCha20 in torch's integer operations: secret Gaussian noise made on the device that adds it.

On CUDA the noise of a large model would otherwise be made by the CPU and cross the bus at 8 bytes a
parameter and step. The operations are the same on every device, so the tests on a CPU (RFC 8439's vectors,
and the keystream of an independent implementation) also hold for the code that runs on a GPU. On a CPU
AES-CTR is used instead: there the processor has instructions for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import torch

from cipherward.crypto.randomness import KEY_BYTES, TERMS, KeyStream
from cipherward.errors import UsageError

NONCE_BYTES = 12
_CONSTANTS = b"expand 32-byte k"
_BLOCKS = 1 << 18
"""Blocks made at a time: 16 MB of state, which a data-centre GPU holds in its cache."""
_COUNTER = 1 << 32
_DEVIATES_A_BLOCK = 8 // TERMS
"""A block of 64 bytes holds eight 64-bit words; a deviate takes one for each of its terms."""


def blocks(key: bytes, nonce: bytes, first: int, count: int, device: torch.device) -> torch.Tensor:
    """ChaCha20's keystream (RFC 8439, section 2.3): word i of block ``first`` + j at [i, j], (16, count), int32.

    ``key``: 32 bytes; ``nonce``: 12 bytes. Raises UsageError for other lengths, or blocks past the 32-bit
    counter's end.
    """
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise UsageError(f"a ChaCha20 key of {len(key)} and a nonce of {len(nonce)} bytes")
    if first < 0 or count < 0 or first + count > _COUNTER:
        raise UsageError(f"ChaCha20 blocks {first} to {first + count}", why="the counter has 32 bits")
    words = np.frombuffer(_CONSTANTS + key + bytes(4) + nonce, dtype="<i4").astype(np.int32)
    start = torch.from_numpy(words).to(device).reshape(16, 1).repeat(1, count)
    # Two's complement: the counter's upper half is the negative numbers.
    start[12] = torch.arange(first, first + count, device=device).to(torch.int32)
    state = start.clone()
    # A row of ChaCha's 4 x 4 matrix for all blocks at once, so that one operation does four quarter rounds.
    a, b, c, d = (state[row : row + 4] for row in range(0, 16, 4))
    scratch = torch.empty_like(a)
    for _ in range(10):
        _quarter_rounds(a, b, c, d, scratch)  # the columns
        b, c, d = b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0)
        _quarter_rounds(a, b, c, d, scratch)  # the diagonals
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return torch.cat([a, b, c, d]).add_(start)


def _quarter_rounds(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, scratch: torch.Tensor
) -> None:
    """RFC 8439, section 2.1, in place on the four columns of each block."""
    for added, to, rotated, bits in ((b, a, d, 16), (d, c, b, 12), (b, a, d, 8), (d, c, b, 7)):
        to.add_(added)  # int32 wraps
        rotated.bitwise_xor_(to)
        # The right shift copies the sign: the mask takes it away again.
        torch.bitwise_right_shift(rotated, 32 - bits, out=scratch)
        scratch.bitwise_and_((1 << bits) - 1)
        rotated.bitwise_left_shift_(bits).bitwise_or_(scratch)


class ChaChaNoise:
    """Standard normal deviates on ``device``, from a key of the process's own.

    No block is used twice: 32 bits of counter, then the nonce's first 32 bits. As a KeyStream it refuses to
    work in a forked copy, has no repr and does not pickle.
    """

    __slots__ = ("_block", "_device", "_key", "_process")

    def __init__(self, stream: KeyStream, device: torch.device) -> None:
        """The key is the next 32 bytes of ``stream``, which the operating system keyed."""
        self._key = stream.bytes(KEY_BYTES)
        self._device = device
        self._block = 0
        self._process = os.getpid()

    def __repr__(self) -> str:
        return "ChaChaNoise(OMITTED)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("ChaChaNoise is secret and does not leave its process")

    def gaussian(self, count: int) -> torch.Tensor:
        """``count`` deviates as ``KeyStream.gaussian`` makes them. Shape (count,), float64, on the device.

        Raises UsageError in a process forked after creation.
        """
        if os.getpid() != self._process:
            raise UsageError(
                "this source of noise was made by another process",
                why="a forked copy would repeat its parent's noise",
                fix="Make a KeyStream in each process",
            )
        out = torch.empty(count, dtype=torch.float64, device=self._device)
        start = 0
        for words in self._keystream(-(-count // _DEVIATES_A_BLOCK)):
            deviates = _box_muller(words)
            size = min(len(deviates), count - start)
            out[start : start + size] = deviates[:size]
            start += size
        return out

    def _keystream(self, count: int) -> Iterator[torch.Tensor]:
        """The next ``count`` blocks, in pieces of an even number of blocks (of which the last may go unused)."""
        done = 0
        while done < count:
            high, low = divmod(self._block, _COUNTER)
            size = min(_BLOCKS, _COUNTER - low, count - done)
            size += size % 2  # the counter's period is even: this never passes its end
            self._block += size  # before they are used, so that no failure uses them again
            nonce = high.to_bytes(4, "little") + bytes(NONCE_BYTES - 4)
            yield blocks(self._key, nonce, low, size, self._device)
            done += size


def _box_muller(words: torch.Tensor) -> torch.Tensor:
    """From (16, n) int32, n even, secret and uniform: n * 8 / TERMS standard normal deviates, float64."""
    # Two neighbours of a row make a 64-bit word; which two does not matter, as all are independent.
    uniform = words.view(torch.int64).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)
    radius, angle = uniform.reshape(2, TERMS, -1)
    radius = radius.neg_().add_(1.0).log_().mul_(-2.0 / TERMS).sqrt_()  # 1 - u in (0, 1]
    angle = angle.mul_(2.0 * torch.pi)
    return torch.cat([(radius * angle.cos()).sum(0), (radius * angle.sin()).sum(0)])
