"""Ids, errors, clock and durable files."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherward import durable
from cipherward.clock import ManualClock
from cipherward.errors import (
    BudgetError,
    CipherwardError,
    EnvironmentProblem,
    FormatError,
    WireError,
    _tree,
    from_wire,
)
from cipherward.ids import Identity, Role, check_digest, check_name


def test_name_with_a_space_is_refused_with_a_suggestion() -> None:
    with pytest.raises(FormatError, match="Use 'st-mary-s-k-ln' instead"):
        check_name("St. Mary's Köln", "site")


@given(st.text(max_size=80))
def test_accepted_names_are_safe_everywhere(text: str) -> None:
    try:
        name = check_name(text, "site")
    except FormatError:
        return
    assert 1 <= len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    identity = Identity.make("consortium", Role.SITE, name)
    assert Identity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "uri",
    ["", "spiffe://c/site", "spiffe://c/root/x", "spiffe://c/site/x/y", "https://c/site/x", "spiffe://c/site/x\n",
     "spiffe://C/site/x", "spiffe://c/site/../x"],
)  # fmt: skip
def test_bad_identities_are_refused(uri: str) -> None:
    with pytest.raises(FormatError):
        Identity.parse(uri)


def test_digest_length_is_checked() -> None:
    assert check_digest(bytes(32), "a root") == bytes(32)
    with pytest.raises(FormatError):
        check_digest(bytes(31), "a root")


def test_error_is_one_line_with_its_code_and_survives_the_wire() -> None:
    error = BudgetError("round 3 is refused", why="4.1 of 4.0 would be spent.", fix="Ask the data owner")
    assert str(error) == "CW-410 round 3 is refused, because 4.1 of 4.0 would be spent. Ask the data owner."
    back = from_wire(WireError(error.code, error.what, error.why, error.fix))
    assert type(back) is BudgetError
    assert str(back) == str(error)
    assert type(from_wire(WireError("CW-987", "new", "", ""))) is CipherwardError


def test_error_codes_are_unique() -> None:
    def count(kind: type[CipherwardError]) -> int:
        return 1 + sum(count(child) for child in kind.__subclasses__())

    assert len(_tree(CipherwardError)) == count(CipherwardError)


def test_manual_clock() -> None:
    clock = ManualClock(100.0)
    clock.advance(5)
    clock.jump(-50)
    assert (clock.now(), clock.monotonic()) == (55.0, 5.0)
    with pytest.raises(ValueError, match="monotonic"):
        clock.advance(-1)


def test_secret_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        durable.write_secret(path, b"one")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(EnvironmentProblem):
        durable.write_secret(path, b"two")
    assert durable.read_secret(path) == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_secret_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    durable.write_secret(path, b"one")
    path.chmod(0o640)
    with pytest.raises(EnvironmentProblem, match="chmod 600"):
        durable.read_secret(path)


def test_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_file(path, b"old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        durable.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_oversized_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no such file"):
        durable.read_file(tmp_path / "absent")
    (tmp_path / "big").write_bytes(bytes(11))
    with pytest.raises(EnvironmentProblem, match="larger than 10 bytes"):
        durable.read_file(tmp_path / "big", limit=10)
