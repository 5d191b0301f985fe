"""SEAL without keys: the context, and ciphertexts in and out. Imported by worker processes only.

TenSEAL's own vector parser is never used: 13 bytes crash it. SEAL's ``load`` accepts most flipped bits, so
what it is given has been checked and is written by ``seal_file``. SEAL reads and writes by path: a file in
memory has one.
"""

from __future__ import annotations

import os
from typing import Any

import tenseal.sealapi as seal

from cipherward.crypto.shared_key.chunks import Sum, Upload
from cipherward.crypto.shared_key.params import SharedKeyParams
from cipherward.crypto.shared_key.seal_file import SealFormat
from cipherward.errors import EnvironmentProblem, VerificationError


class Scratch:
    """A file in memory."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"

    def write(self, content: bytes) -> None:
        """Replace the content."""
        os.ftruncate(self._fd, 0)
        written = 0
        while written < len(content):
            written += os.pwrite(self._fd, content[written:], written)

    def read(self) -> bytes:
        """The whole content."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def clear(self) -> None:
        """Empty it: SEAL does not truncate what it overwrites."""
        os.ftruncate(self._fd, 0)


class SealContext:
    """SEAL set up for one parameter set, with its security check for 128 bits on.

    ``context`` and ``evaluator`` are SEAL's objects.
    """

    def __init__(self, params: SharedKeyParams) -> None:
        self.params = params
        self.scratch = Scratch()
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(params.degree)
        parameters.set_coeff_modulus([seal.Modulus(prime) for prime in params.key_moduli])
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise EnvironmentProblem(
                f"SEAL refuses the parameter set {params.name}",
                why=self.context.parameters_error_message(),
                fix="Reinstall tenseal",
            )
        self.evaluator = seal.Evaluator(self.context)
        self.format = SealFormat(
            version=self._version(),
            degree=params.degree,
            primes=len(params.moduli),
            key_primes=len(params.key_moduli),
            scale=params.scale,
            parms_id=_id_bytes(self.context.first_parms_id()),
            key_parms_id=_id_bytes(self.context.key_parms_id()),
        )

    def _version(self) -> tuple[int, int]:
        header = self.saved(seal.Plaintext())
        return header[3], header[4]

    def saved(self, native: Any) -> bytes:
        """The file that SEAL writes for one of its objects."""
        self.scratch.clear()
        native.save(self.scratch.path)
        return self.scratch.read()

    def load(self, native: Any, file: bytes, what: str) -> None:
        """Fill one of SEAL's objects from a file; VerificationError if SEAL refuses it."""
        self.scratch.write(file)
        try:
            native.load(self.context, self.scratch.path)
        except (ValueError, RuntimeError) as error:
            raise VerificationError(f"{what} is refused", why=f"SEAL says {error}") from None

    def from_upload(self, upload: Upload, what: str) -> Any:
        """SEAL's ciphertext, its c1 expanded from the seed."""
        native = seal.Ciphertext()
        self.load(native, self.format.write_seeded(upload.c0, upload.seed), what)
        return native

    def from_sum(self, full: Sum, what: str) -> Any:
        """SEAL's ciphertext."""
        native = seal.Ciphertext()
        self.load(native, self.format.write_full(full.c0, full.c1), what)
        return native

    def to_sum(self, native: Any) -> Sum:
        """Both polynomials of SEAL's ciphertext."""
        return Sum(*self.format.read_full(self.saved(native)))


def _id_bytes(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)
