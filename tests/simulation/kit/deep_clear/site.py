"""The site's half of ``public``."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
from deep_clear.public import VALUES

from cipherward.crypto.labels import Label, digest


class Key:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def reveal(self) -> bytes:
        return self._content

    def digest(self, context: bytes) -> bytes:
        return digest(Label.FILE_DIGEST, context, self._content)


class Cipher:
    def __enter__(self) -> Cipher:
        return self

    def __exit__(self, *_error: Any) -> None:
        """There is nothing to stop."""

    def encrypt(self, vector: np.ndarray) -> Any:
        for start in range(0, len(vector), VALUES):
            yield vector[start : start + VALUES].astype("<f8").tobytes()

    def open_sum(self, chunks: Any, _length: int, _contributors: int) -> np.ndarray:
        return np.concatenate([np.frombuffer(chunk, "<f8") for chunk in chunks])


SITE_SIDE = SimpleNamespace(
    cipher=lambda key, context, threads=None: Cipher(),
    generate_key=lambda params: Key(os.urandom(32)),
    load_key=lambda params, content: Key(content),
)
