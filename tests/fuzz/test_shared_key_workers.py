"""Hostile bytes at the worker processes: the service stays up, and a good sum afterwards is still right."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cipherward.crypto.shared_key.adder import WORKER as ADD_WORKER
from cipherward.crypto.shared_key.params import SEAL_4096_48 as P
from cipherward.crypto.shared_key.site import WORKER as SITE_WORKER
from cipherward.crypto.suites.registry import suite
from cipherward.crypto.suites.site_side import site_side
from cipherward.errors import CipherwardError, FormatError
from cipherward.isolated import IsolatedWorker

SUITE, SITE = suite("shared-key"), site_side("shared-key")
LENGTH = 9000  # three ciphertexts
PLACE = struct.pack(">IQ", 0, LENGTH)
TENSEAL_BOMB = bytes.fromhex("0a028010190000000000007042")
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def world():
    key = SITE.generate_key(P)
    with SITE.cipher(key, b"") as cipher, SUITE.chunk_adder(P) as adder:
        uploads = [next(cipher.encrypt(np.full(LENGTH, float(i)))) for i in range(3)]
        yield key, cipher, adder, uploads, adder.add(uploads, 0, LENGTH)


@pytest.fixture(scope="module", autouse=True)
def still_right(world):
    """Once all the fuzzing is over."""
    yield
    _, cipher, adder, uploads, total = world
    assert adder.add(uploads, 0, LENGTH) == total
    assert np.abs(cipher.open_sum([total], LENGTH, 3) - 3.0).max() <= P.error_bound(3)


def mutated(data, valid):
    """Flips, cuts, insertions, or something else altogether."""
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "random", "bomb"]))
    at = data.draw(st.integers(0, len(valid) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))
    if how == "flip":
        return valid[:at] + bytes([valid[at] ^ 1 << data.draw(st.integers(0, 7))]) + valid[at + 1 :]
    if how == "cut":
        return valid[:at]
    if how == "insert":
        return valid[:at] + junk + valid[at:]
    if how == "overwrite":
        return (valid[:at] + junk + valid[at + len(junk) :])[: len(valid)]
    return junk if how == "random" else TENSEAL_BOMB


@FUZZ
@given(data=st.data())
def test_mutated_uploads_are_refused_or_harmless(world, data):
    _, _, adder, uploads, _ = world
    chunk = mutated(data, uploads[1])
    adder.add(uploads[:1], 0, LENGTH)
    before = adder.pid
    try:
        P.check_upload_chunk(chunk, 0, LENGTH)
    except FormatError:
        with pytest.raises(FormatError):
            adder.add([uploads[0], chunk, uploads[2]], 0, LENGTH)
    else:
        # A residue or seed of another value: well-formed, so it adds up. Digests and signatures catch it.
        P.check_sum_chunk(adder.add([uploads[0], chunk, uploads[2]], 0, LENGTH), 0, LENGTH)
    assert adder.pid == before, "a structure that the check refuses must not cost a process"


@FUZZ
@given(data=st.data())
def test_mutated_sums_are_refused_or_harmless(world, data):
    _, cipher, _, _, total = world
    chunk = mutated(data, total)
    try:
        P.check_sum_chunk(chunk, 0, LENGTH)
    except FormatError:
        with pytest.raises(FormatError):
            cipher.open_sum([chunk], LENGTH, 3)
    else:
        assert cipher.open_sum([chunk], LENGTH, 3).shape == (LENGTH,)


def test_one_flipped_bit_of_a_residue_spoils_the_whole_ciphertext(world):
    """Such a chunk has the right structure: digests must catch it, and if not, the check constant does."""
    _, cipher, _, _, total = world
    opened = cipher.open_sum([total[:16] + bytes([total[16] ^ 1]) + total[17:]], LENGTH, 3)
    wrong = np.abs(opened - 3) > 1
    assert wrong[: P.values_per_ciphertext].mean() > 0.99
    assert not wrong[P.values_per_ciphertext :].any()


@settings(max_examples=20, deadline=None)
@given(
    operation=st.sampled_from(
        ["set", "begin", "add", "finish", "generate", "key", "encrypt", "open", "x", ""]
    ),
    body=st.binary(max_size=100),
    placed=st.booleans(),
)
@pytest.mark.parametrize("module", [ADD_WORKER, SITE_WORKER])
def test_any_request_in_any_order_ends_in_an_error_of_ours(module, operation, body, placed):
    worker = worker_for(module)
    with contextlib.suppress(CipherwardError):
        worker.request(operation, PLACE if placed else b"", body, doing="fuzzing")
    worker.request("begin" if module == ADD_WORKER else "generate", PLACE, doing="going on")


@pytest.fixture(scope="module", autouse=True)
def _workers():
    yield
    for worker in WORKERS.values():
        worker.close()


WORKERS: dict[str, IsolatedWorker] = {}


def worker_for(module):
    if module not in WORKERS:
        WORKERS[module] = IsolatedWorker(
            module, memory_bytes=2**28, timeout=20, opening=[("set", P.name.encode())]
        )
    return WORKERS[module]


def test_work_before_the_set_or_the_key_is_an_error_of_ours():
    for module, operation in ((ADD_WORKER, "add"), (SITE_WORKER, "generate"), (SITE_WORKER, "encrypt")):
        with (
            IsolatedWorker(module, memory_bytes=2**28, timeout=20) as bare,
            pytest.raises(CipherwardError, match="before it knew the parameter set"),
        ):
            bare.request(operation, PLACE, doing="asking")
    with (
        IsolatedWorker(
            SITE_WORKER, memory_bytes=2**28, timeout=20, opening=[("set", P.name.encode())]
        ) as keyless,
        pytest.raises(CipherwardError, match="before it had a key"),
    ):
        keyless.request("encrypt", PLACE, bytes(8), doing="asking")
