"""The site's half: a key that is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.suites.base import SecretKey, SiteCipher, StudyKey, SuiteParams
from cipherward.evaluation.bench.plain.public import VALUES
from cipherward.ids import Digest


@dataclass(frozen=True)
class PlainKey:
    """See ``StudyKey``."""

    params: SuiteParams

    def digest(self, context: bytes) -> Digest:
        """Of nothing."""
        return digest(Label.SHARED_KEY_DIGEST, context)

    def reveal(self) -> bytes:
        """One byte, so that the key's relay has something to carry."""
        return b"\0"


class PlainCipher:
    """See ``SiteCipher``."""

    def __init__(self, key: SecretKey) -> None:
        self._params = key.params

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def encrypt(self, vector: NDArray[np.floating[Any]]) -> Iterator[bytes]:
        """Does not."""
        for index in range(self._params.chunk_count(vector.size)):
            yield vector[index * VALUES : (index + 1) * VALUES].astype("<f4").tobytes()

    def open_sum(self, chunks: Iterable[bytes], length: int, contributors: int) -> NDArray[np.float64]:
        """The sum as it came."""
        return np.concatenate([np.frombuffer(chunk, dtype="<f8") for chunk in chunks])

    def close(self) -> None:
        """Nothing to stop."""


class PlainSite:
    """See ``StudyKeySide``."""

    def generate_key(self, params: SuiteParams) -> StudyKey:
        """The key that is none."""
        return PlainKey(params)

    def load_key(self, params: SuiteParams, content: bytes) -> StudyKey:
        """The key that is none."""
        return PlainKey(params)

    def cipher(self, key: SecretKey, context: bytes, threads: int | None = None) -> SiteCipher:
        """Does not encrypt."""
        return PlainCipher(key)


SITE_SIDE = PlainSite()
