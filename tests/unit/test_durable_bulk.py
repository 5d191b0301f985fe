"""Megabytes are written past the page cache: whatever their sizes, and on file systems that cannot."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cipherward.durable import write_bulk
from cipherward.errors import EnvironmentProblem

SIZES = st.lists(
    st.one_of(st.integers(0, 9000), st.sampled_from([2**20 - 1, 2**20, 2**20 + 4096])), max_size=6
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES)
def test_parts_follow_each_other(tmp_path: Path, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    write_bulk(tmp_path / "bulk", parts, mode=0o600)
    assert (tmp_path / "bulk").read_bytes() == b"".join(parts)
    assert [path.name for path in tmp_path.iterdir()] == ["bulk"]
    assert (tmp_path / "bulk").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 2 * 2**20, 3 * 2**20 - 1])
@pytest.mark.parametrize("shift", [0, 1], ids=["from a page's beginning", "from elsewhere"])
def test_memory_is_written_from_where_it_is(tmp_path: Path, size: int, shift: int) -> None:
    with (
        mmap.mmap(-1, size + 4096) as memory,
        memoryview(memory) as whole,
        whole[shift : shift + size] as part,
    ):
        part[:] = os.urandom(size)
        write_bulk(tmp_path / "bulk", part, mode=0o600)
        assert (tmp_path / "bulk").read_bytes() == bytes(part)


Write = Callable[[int, memoryview], int]


def _writes(monkeypatch: pytest.MonkeyPatch, write: Callable[[Write, int, memoryview, bool], int]) -> None:
    original = os.write

    def patched(fd: int, content: memoryview) -> int:
        direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        return write(original, fd, content, direct)

    monkeypatch.setattr(os, "write", patched)


def test_the_page_cache_is_used_where_nothing_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(write: Write, fd: int, content: memoryview, direct: bool) -> int:
        if direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, content)

    _writes(monkeypatch, refuses)
    part = os.urandom(3 * 2**20 + 5)
    write_bulk(tmp_path / "bulk", [part], mode=0o600)
    assert (tmp_path / "bulk").read_bytes() == part


def test_writes_that_stop_half_way_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(write: Write, fd: int, content: memoryview, direct: bool) -> int:
        return write(fd, content[: 8192 if direct else 100])

    _writes(monkeypatch, some)
    part = os.urandom(2**20 + 12345)
    write_bulk(tmp_path / "bulk", [part], mode=0o600)
    assert (tmp_path / "bulk").read_bytes() == part


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(write: Write, fd: int, content: memoryview, direct: bool) -> int:
        if not direct:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, content)

    _writes(monkeypatch, full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        write_bulk(tmp_path / "bulk", [os.urandom(2**20 + 1)], mode=0o600)
    assert list(tmp_path.iterdir()) == []
