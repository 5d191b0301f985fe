"""What a target is, and the hostile bytes that every target's corpus has."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import fuzz_wire as wire
import zstandard
from fuzz_mutate import Mutate, octets

from cipherward.errors import CipherwardError

TARGETS: dict[str, Target] = {}


@dataclass(frozen=True)
class Target:
    """Code that reads bytes which somebody else wrote.

    ``run`` may raise CipherwardError and nothing else. ``covers`` names what must have a target (see
    test_fuzz_complete): ``rpc X``, ``reply X``, ``label X``, ``armour X``, ``toml X``, ``chunk SET KIND``.
    ``weight``: its part of all inputs. ``world``: what it needs besides, closed at the end.
    """

    name: str
    run: Callable[[bytes], None]
    corpus: Sequence[bytes]
    mutate: Mutate
    covers: frozenset[str] = frozenset()
    weight: int = 10
    slow: bool = False
    """Needs other processes or a server."""

    def once(self, data: bytes) -> bool:
        """Give it an input. False if it was refused, as nearly all are; anything but an error of ours escapes."""
        try:
            self.run(data)
        except CipherwardError as error:
            if not str(error).isprintable():
                raise ValueError(f"what people are told is not one printable line: {str(error)!r}") from error
            return False
        return True

    def inputs(self, rng: Random) -> Iterator[bytes]:
        """Without end: valid ones, hostile ones, and mutations of both and of each other."""
        pool = [*self.corpus, *HOSTILE]
        yield from pool
        while True:
            data = rng.choice(self.corpus) if self.corpus and rng.random() < 0.95 else rng.choice(pool)
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                data = self.mutate(data, rng)
            yield data


CLOSING: list[Callable[[], None]] = []
"""What targets started in this process, to be closed before it ends."""


def close_all() -> None:
    """Stop servers and workers; forget the targets that need them."""
    while CLOSING:
        CLOSING.pop()()
    TARGETS.clear()


def target(
    name: str, *, covers: Sequence[str] = (), weight: int = 10, slow: bool = False
) -> Callable[[Callable[[], tuple[Callable[[bytes], None], Sequence[bytes], Mutate]]], None]:
    """Registers a function that gives (run, corpus, mutate)."""

    def register(make: Callable[[], tuple[Callable[[bytes], None], Sequence[bytes], Mutate]]) -> None:
        if name in SPECS:
            raise ValueError(f"two targets are named {name}")
        SPECS[name] = Spec(name, frozenset(covers), weight, slow, make)

    return register


@dataclass(frozen=True)
class Spec:
    """A target that is not made yet: a valid world costs a second."""

    name: str
    covers: frozenset[str]
    weight: int
    slow: bool
    make: Callable[[], tuple[Callable[[bytes], None], Sequence[bytes], Mutate]]

    def target(self) -> Target:
        """Made once in a process."""
        if self.name not in TARGETS:
            run, corpus, mutate = self.make()
            TARGETS[self.name] = Target(
                self.name, run, list(corpus), mutate, self.covers, self.weight, self.slow
            )
        return TARGETS[self.name]


SPECS: dict[str, Spec] = {}

TENSEAL_BOMB = bytes.fromhex("0a028010190000000000007042")
"""sizes = [2048], no ciphertexts, a scale: TenSEAL 0.3.16 crashes when it is added to another (13 bytes)."""


def _zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2**24))
    return out.getvalue()


def _tenseal(sizes: Sequence[int], ciphertexts: Sequence[bytes] = ()) -> bytes:
    """A CKKSVectorProto: sizes = 1, ciphertexts = 2, scale = 3."""
    packed = b"".join(wire.varint(one) for one in sizes)
    fields = [wire.Field(1, wire.BYTES, packed)]
    fields += [wire.Field(2, wire.BYTES, one) for one in ciphertexts]
    return wire.encode([*fields, wire.Field(3, wire.FIXED64, struct.pack("<d", 2.0**40))])


def _seal_header(compression: int, size: int, body: bytes) -> bytes:
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 1, compression, 0, size) + body


_EXPANDING = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))

HOSTILE: tuple[bytes, ...] = (
    b"",
    b"\x00",
    b"\xff" * 64,
    bytes(4096),
    TENSEAL_BOMB,
    _tenseal([2048] * 100),
    _tenseal([2**64 - 1]),
    _tenseal([0]),
    _tenseal([2048], [b""]),
    _tenseal([2048], [TENSEAL_BOMB] * 9),
    _tenseal([2**31, 2**31], [_seal_header(2, 2**63, _EXPANDING)]),
    _seal_header(2, 16 + len(_EXPANDING), _EXPANDING),
    _seal_header(0, 2**64 - 1, b""),
    _seal_header(1, 16, gzip.compress(bytes(2**20))),
    _EXPANDING,
    zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**20)),
    gzip.compress(bytes(2**24)),
    _zip_bomb(),
    *(
        wire.encode([wire.nested(1, depth, kind)])
        for depth in (99, 101, 3000)
        for kind in (wire.BYTES, wire.GROUP)
    ),
    b"\x0b" * 5000,  # groups that begin and never end
    b"\x0a\xff\xff\xff\xff\x0f",  # a length of 4 GiB
    b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80" * 100,  # an integer without end
    b"\x0a\x00" * 20_000,  # many empty elements
    b"\x12\x00" * 20_000,
    b"[" * 50_000,
    b"{" * 5000 + b"}" * 5000,
    b"a = " + b"9" * 5000,
    b"a." * 5000 + b"a = 1",
    b"-----BEGIN CIPHERWARD ",
    b"0\x82\xff\xff" + bytes(70_000),
    b"0\x80" * 3000,  # indefinite lengths, nested
)
"""For every target, whatever it reads."""


def plain(data: bytes, rng: Random) -> bytes:
    """For what has no structure that mutation should keep."""
    return octets(data, rng)
