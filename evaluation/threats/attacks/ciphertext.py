"""An upload as the coordinator has it, taken for the update it might be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.quorum.params import QuorumParams


def read_as_numbers(params: QuorumParams, chunks: list[bytes], count: int) -> NDArray[np.float64]:
    """The ciphertext's residues, centred and in the encoding's units: (count,). What they would be without a key."""
    residues = np.frombuffer(b"".join(chunks), dtype=params.residue)[:count].astype(np.int64)
    centred = np.where(residues > params.modulus // 2, residues - params.modulus, residues)
    values: NDArray[np.float64] = centred / params.scale
    return values
