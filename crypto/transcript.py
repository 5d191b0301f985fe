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


def model_digest(weights: NDArray[np.float32]) -> Digest:
    """Digest of a model: its flat float32 weights, little-endian."""
    return digest(Label.MODEL_DIGEST, np.ascontiguousarray(weights, dtype="<f4").tobytes())
