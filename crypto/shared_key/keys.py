"""The secret key that all sites of a study share. The coordinator never imports this module."""

from __future__ import annotations

from typing import NoReturn

from cipherward.crypto.labels import Label, digest
from cipherward.crypto.shared_key.chunks import key_bytes
from cipherward.crypto.shared_key.params import SharedKeyParams
from cipherward.crypto.shared_key.wire import HEADER_BYTES, Header, Kind, unpack_polynomial
from cipherward.errors import FormatError
from cipherward.ids import Digest


class SharedSecretKey:
    """A ternary secret in NTT form, packed as on the wire. Has no repr of its content, does not pickle."""

    __slots__ = ("_content", "_params")

    def __init__(self, params: SharedKeyParams, content: bytes) -> None:
        """From bytes; FormatError unless they are a key of that set."""
        header(params).check(content, "the shared key")
        if len(content) != key_bytes(params):
            raise FormatError(
                "the shared key is refused",
                why=f"it has {len(content)} bytes and must have {key_bytes(params)}",
            )
        residues = unpack_polynomial(
            content + bytes(8), HEADER_BYTES, params.degree, params.key_moduli, "the shared key"
        )
        if not residues.any(axis=1).all():
            raise FormatError("the shared key is refused", why="it is zero: it would hide nothing")
        self._params = params
        self._content = bytes(content)

    def __repr__(self) -> str:
        return f"<shared key of {self._params.name}, content omitted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key does not pickle and is not copied")

    @property
    def params(self) -> SharedKeyParams:
        """The set it belongs to, at the study's bound."""
        return self._params

    def digest(self, context: bytes) -> Digest:
        """What sites compare before they use the key. ``context``: the manifest's digest."""
        return digest(Label.SHARED_KEY_DIGEST, context, self._params.name.encode(), self._content)

    def reveal(self) -> bytes:
        """The key's bytes, to seal it to another site or to store it. Never log or send them bare."""
        return self._content


def header(params: SharedKeyParams) -> Header:
    """What a key's bytes begin with."""
    return Header(params.set_id, Kind.KEY, 1, 0)
