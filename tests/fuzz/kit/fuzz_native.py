"""Native code: worker processes that check a chunk's structure and then hand it to SEAL, and what a parent believes of
a worker that was fooled."""

from __future__ import annotations

import json

from fuzz_chunks import words
from fuzz_mutate import octets, several
from fuzz_target import CLOSING, target
from fuzz_text import toml
from fuzz_world import LENGTH, study

from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import study_key_side
from cipherward.errors import FormatError, UnavailableError
from cipherward.isolated import _Broken, _refusal

SET = "seal-4096-48"


@target("native adder", covers=["native"], weight=3, slow=True)
def _adder():
    """A hostile upload between two good ones. One that the check lets pass must add up; none costs the process."""
    s = study(SET)
    adder = suite(s.params.suite).chunk_adder(s.params)
    CLOSING.append(adder.close)
    good = [s.chunks[name][0] for name in ("anna", "bert")]
    adder.add(good, 0, LENGTH)

    def run(data):
        before = adder.pid
        try:
            total = adder.add([good[0], data, good[1]], 0, LENGTH)
            s.params.check_sum_chunk(total, 0, LENGTH)
        except UnavailableError as error:
            raise ValueError("an upload cost a process") from error
        finally:
            if adder.pid != before:
                adder.add(good, 0, LENGTH)

    return run, [s.chunks[name][0] for name in ("cora", "dora")], words


@target("native opener", covers=["native"], weight=3, slow=True)
def _opener():
    """A hostile sum at a site."""
    s = study(SET)
    cipher = study_key_side(s.params.suite).cipher(s.key, b"")
    CLOSING.append(cipher.close)

    def run(data):
        try:
            cipher.open_sum([data], LENGTH, 4)
        except UnavailableError as error:
            raise ValueError("a sum cost a process") from error

    return run, [s.sum[0]], words


@target("native worker's error", covers=["native"], weight=3)
def _error():
    seed = json.dumps({"code": "CW-310", "what": "a", "why": "b", "fix": "c"}).encode()

    def run(data):
        try:
            raise _refusal(data)
        except _Broken as error:
            raise FormatError("its error could not be read") from error

    return run, [seed, b"[]", b"{}", seed.replace(b'"a"', b"null")], several(octets, toml)
