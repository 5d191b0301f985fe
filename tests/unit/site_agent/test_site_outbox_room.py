"""What the outbox leaves on a disk that is full, or of attempts that are given up."""

import errno

import pytest

from cipherward.errors import EnvironmentProblem
from cipherward.site_agent.journal.outbox import Outbox


def full():
    yield b"x" * 100_000
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("put", ["put_chunks", "put_shares", "put_sum"])
def test_a_full_disk_keeps_no_half_file(tmp_path, put):
    outbox = Outbox(tmp_path / "round")
    with pytest.raises(EnvironmentProblem):
        getattr(outbox, put)(*([] if put == "put_sum" else [1]), full())
    assert list((tmp_path / "round").iterdir()) == []


def test_a_new_attempt_takes_the_room_of_the_one_before(tmp_path):
    outbox = Outbox(tmp_path / "round")
    outbox.put_chunks(1, [b"chunk"])
    outbox.put_shares(1, [b"share"])
    outbox.put_chunks(2, [b"other"])
    outbox.put_shares(2, [b"share"])
    names = sorted(path.name for path in (tmp_path / "round").iterdir())
    assert names == ["attempt-2.chunks", "attempt-2.shares"]
