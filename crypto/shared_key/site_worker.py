"""The process that holds the shared key at a site, run by ``site``. The key comes over its stdin.

Operations: ``set`` (name of the parameter set), ``generate`` (replies a key), ``key`` (the key to use),
``encrypt`` (place, then float64 values; replies an upload chunk), ``open`` (place, then a sum chunk; replies
float64 values). A place is: index u32, length u64. Values are little-endian.
"""

from __future__ import annotations

import numpy as np

from cipherward.crypto.shared_key.chunks import pack_upload, parse_sum
from cipherward.crypto.shared_key.native import SealContext
from cipherward.crypto.shared_key.native_keys import KeyedContext, generate_key
from cipherward.crypto.shared_key.params import parameters
from cipherward.crypto.shared_key.wire import PLACE
from cipherward.errors import ProtocolError
from cipherward.isolated import serve


class Site:
    """The worker's state: SEAL for one set, then one key."""

    def __init__(self) -> None:
        self._seal: SealContext | None = None
        self._keyed: KeyedContext | None = None

    def choose(self, body: bytes) -> bytes:
        """Set up SEAL for the named set."""
        self._seal = SealContext(parameters(body.decode()))
        return b""

    def generate(self, _body: bytes) -> bytes:
        """A fresh key."""
        return generate_key(self._native())

    def key(self, body: bytes) -> bytes:
        """Use this key from now on."""
        self._keyed = KeyedContext(self._native(), body)
        return b""

    def encrypt(self, body: bytes) -> bytes:
        """One upload chunk."""
        index, _length = PLACE.unpack_from(body)
        values = np.frombuffer(body, dtype="<f8", offset=PLACE.size)
        step = self._native().params.values_per_ciphertext
        keyed = self._with_key()
        ciphertexts = [keyed.encrypt(values[at : at + step]) for at in range(0, values.size, step)]
        return pack_upload(self._native().params, ciphertexts, index)

    def open(self, body: bytes) -> bytes:
        """The values of one sum chunk, whose structure is checked first."""
        index, length = PLACE.unpack_from(body)
        params, keyed = self._native().params, self._with_key()
        sums = parse_sum(params, body[PLACE.size :], index, length)
        opened = [keyed.decrypt(one, f"sum chunk {index}") for one in sums]
        values = np.concatenate(opened)[: params.values_in(index, length)]
        return values.astype("<f8").tobytes()

    def _native(self) -> SealContext:
        if self._seal is None:
            raise ProtocolError("the key's process was asked to work before it knew the parameter set")
        return self._seal

    def _with_key(self) -> KeyedContext:
        if self._keyed is None:
            raise ProtocolError("the key's process was asked to work before it had a key")
        return self._keyed


def main() -> None:
    """Serve until the parent goes."""
    site = Site()
    serve(
        {
            "set": site.choose,
            "generate": site.generate,
            "key": site.key,
            "encrypt": site.encrypt,
            "open": site.open,
        }
    )


if __name__ == "__main__":
    main()
