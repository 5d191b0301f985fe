"""SEAL with the secret key: generation, encryption, decryption. Only the site's worker process imports it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from cipherward.crypto.shared_key.chunks import Sum, Upload
from cipherward.crypto.shared_key.keys import header
from cipherward.crypto.shared_key.native import SealContext
from cipherward.crypto.shared_key.wire import HEADER_BYTES, pack_polynomial, unpack_polynomial


def generate_key(native: SealContext) -> bytes:
    """A fresh ternary key from SEAL's generator (seeded by the operating system), packed."""
    file = native.saved(seal.KeyGenerator(native.context).secret_key())
    native.scratch.clear()
    params = native.params
    return header(params).pack() + pack_polynomial(native.format.read_key(file), params.key_moduli)


class KeyedContext:
    """Encrypts and decrypts under one key."""

    def __init__(self, native: SealContext, key: bytes) -> None:
        params = native.params
        residues = unpack_polynomial(
            key + bytes(8), HEADER_BYTES, params.degree, params.key_moduli, "the shared key"
        )
        secret = seal.SecretKey()
        native.load(secret, native.format.write_key(residues), "the shared key")
        native.scratch.clear()
        self._native = native
        self._encryptor = seal.Encryptor(native.context, secret)
        self._decryptor = seal.Decryptor(native.context, secret)
        self._encoder = seal.CKKSEncoder(native.context)
        self._plain: Any = seal.Plaintext()

    def encrypt(self, values: NDArray[np.float64]) -> Upload:
        """One fresh ciphertext of up to ``values_per_ciphertext`` values; free places hold zero."""
        params = self._native.params
        slots = np.zeros(params.values_per_ciphertext)
        slots[: values.size] = values
        if params.values_per_slot == 2:
            self._encoder.encode(slots.view(np.complex128).tolist(), params.scale, self._plain)
        else:
            self._encoder.encode(slots.tolist(), params.scale, self._plain)
        # Symmetric and "serializable": SEAL then writes c0 and the public seed of c1 only.
        file = self._native.saved(self._encryptor.encrypt_symmetric(self._plain))
        return Upload(*self._native.format.read_seeded(file))

    def decrypt(self, full: Sum, what: str) -> NDArray[np.float64]:
        """The values of one ciphertext, float64 of shape (values_per_ciphertext,)."""
        ciphertext = self._native.from_sum(full, what)
        self._decryptor.decrypt(ciphertext, self._plain)
        if self._native.params.values_per_slot == 2:
            return np.array(self._encoder.decode_complex(self._plain), dtype=np.complex128).view(np.float64)
        return np.array(self._encoder.decode_double(self._plain), dtype=np.float64)
