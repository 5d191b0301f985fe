"""The chain of a study: every close or abort record names the hash of all that came before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, digest
from cipherward.ids import Digest


def transcript_start(study: str, first_manifest_digest: bytes) -> Digest:
    """The hash before round 1; ``first_manifest_digest`` is that of version 1."""
    return digest(Label.TRANSCRIPT, study.encode(), first_manifest_digest)


def transcript_next(previous: bytes, record: bytes) -> Digest:
    """The hash after a close or abort record with digest ``record``."""
    return digest(Label.TRANSCRIPT, previous, record)


def vector_bytes(values: NDArray[np.float32]) -> memoryview:
    """A flat vector as it is stored and hashed, float32 and little-endian: no copy of one that is so in memory."""
    return np.ascontiguousarray(values, dtype="<f4").data.cast("B")


def model_digest(weights: NDArray[np.float32]) -> Digest:
    """Digest of a model: its ``vector_bytes``."""
    return digest(Label.MODEL_DIGEST, vector_bytes(weights))
