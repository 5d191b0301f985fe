"""What the coordinator relies on from its blobs, in a folder and on object stores.

The same tests check a store that you want to use: CIPHERWARD_TEST_BLOBS=s3://bucket/prefix, with fsspec's own
settings for it in the environment, e.g. FSSPEC_S3_ENDPOINT_URL. The prefix must be empty, and is emptied again.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from cipherward import durable
from cipherward.coordinator.blobs.blobs import Blobs
from cipherward.coordinator.blobs.writer import SegmentWriter
from cipherward.coordinator.store.chunks import Place
from cipherward.crypto.merkle import leaf_hash
from cipherward.errors import EnvironmentProblem, FormatError, OutageError, UsageError

OWN_STORE = os.environ.get("CIPHERWARD_TEST_BLOBS", "")


class BackendError(Exception):
    """As botocore's, google's and azure's: not an OSError."""


class Objects(fsspec.AbstractFileSystem):
    """As object stores are: keys and bytes, no folders, objects that appear whole, errors of its own kinds."""

    protocol = "cwobjects"
    kept: ClassVar[dict[str, bytes]] = {}
    failing: ClassVar[Exception | None] = None

    def _may(self) -> None:
        if Objects.failing is not None:
            raise Objects.failing

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._may()
        self.kept[self._strip_protocol(path)] = bytes(value)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self._may()
        path = self._strip_protocol(path)
        if path not in self.kept:
            raise FileNotFoundError(path)
        return self.kept[path][start:end]

    def rm_file(self, path: str) -> None:
        self._may()
        if self.kept.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> list[str]:
        self._may()
        return sorted(key for key in self.kept if key.startswith(f"{path}/"))


class Shares(Objects):
    """As servers of files are: a file needs its folder, and the topmost one is made by an administrator."""

    protocol = "cwshares"
    folders: ClassVar[set[str]] = set()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if self._parent(path) not in self.folders:
            raise FileNotFoundError(path)
        super().pipe_file(path, value)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        if not create_parents and self._parent(path) not in self.folders:
            raise FileNotFoundError(path)
        if path in self.folders:
            raise FileExistsError(path)
        self.folders.add(path)


fsspec.register_implementation("cwobjects", Objects, clobber=True)
fsspec.register_implementation("cwshares", Shares, clobber=True)


@pytest.fixture(params=["folder", "memory", "objects", *(["own"] if OWN_STORE else [])])
def blob_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    url = {
        "folder": f"file://{tmp_path}/blobs",
        "memory": f"memory://bucket-{secrets.token_hex(4)}/prefix",
        "objects": "cwobjects://bucket/prefix",
        "own": OWN_STORE,
    }[request.param]
    Objects.kept.clear()
    yield url
    if request.param == "own":
        files, root = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        for path in files.find(root):
            files.rm_file(path)


@pytest.fixture
def blobs(blob_url: str) -> Blobs:
    return Blobs(blob_url)


@pytest.fixture
def folder(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/blobs")


def files_of(url: str) -> list[str]:
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return [path[len(root) :].strip("/") for path in files.find(root)]


def test_parts_come_back_by_place(blobs: Blobs, blob_url: str) -> None:
    large = os.urandom(3_000_000)
    name = blobs.put([b"ab", large, b"yz"])
    again = Blobs(blob_url)
    assert again.read(Place(name, 0, 2)) == b"ab"
    assert again.read(Place(name, 2, 2 + len(large))) == large
    assert again.read(Place(name, len(large) + 2, len(large) + 4)) == b"yz"
    assert files_of(blob_url) == [f"{name[:2]}/{name}"]
    assert len({name, *(blobs.put([b"ab"]) for _ in range(5))}) == 6, "same content, another blob"


def test_what_is_gone_or_cut_is_said(blobs: Blobs) -> None:
    name = blobs.put([b"0123456789"])
    with pytest.raises(FormatError, match="cut short"):
        blobs.read(Place(name, 5, 12))
    blobs.delete([name, name])
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        blobs.read(Place(name, 0, 2))


def test_lost_is_what_a_place_that_is_there_lacks(blobs: Blobs) -> None:
    kept, gone = blobs.put([b"kept"]), blobs.put([b"gone"])
    blobs.delete([gone])
    assert not blobs.lost(gone), (
        "without its mark it may be another place, such as a volume that is not mounted"
    )
    blobs.claim("a" * 32, {kept})
    assert blobs.lost(gone) and not blobs.lost(kept)


@pytest.mark.parametrize(
    "error", [BackendError("Connection reset"), PermissionError("AccessDenied"), OSError(errno.EIO, "I/O")]
)
def test_a_store_that_cannot_be_asked_has_lost_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    Objects.kept.clear()
    blobs = Blobs("cwobjects://bucket/prefix")
    blobs.claim("a" * 32, set())
    monkeypatch.setattr(Objects, "failing", error)
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        blobs.lost("0" * 32)
    monkeypatch.setattr(Objects, "failing", None)
    assert blobs.lost("0" * 32)


def test_a_sweep_takes_strays_and_nothing_else(blobs: Blobs, blob_url: str) -> None:
    kept, stray = blobs.put([b"kept"]), blobs.put([b"stray"])
    files, root = fsspec.core.url_to_fs(blob_url)
    others = ["README", f"{stray[:2]}/notes.txt", f"neighbour/{stray[:2]}/{stray}", f"ff/{stray[2:]}ff"]
    for other in others:
        if "file" in files.protocol:
            files.makedirs(f"{root}/{other}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{root}/{other}", b"not ours")
    assert blobs.stray({kept}) == [stray]
    assert blobs.sweep({kept}) == 1
    assert sorted(files_of(blob_url)) == sorted([f"{kept[:2]}/{kept}", *others])


def test_blobs_belong_to_one_database(blobs: Blobs, blob_url: str) -> None:
    blobs.claim("a" * 32, set())
    kept = blobs.put([b"kept"])
    Blobs(blob_url).claim("a" * 32, {kept})
    for used in (set(), {kept}):
        with pytest.raises(EnvironmentProblem, match="not of this database"):
            Blobs(blob_url).claim("b" * 32, used)
    assert blobs.sweep({kept}) == 0


def test_blobs_without_a_mark_are_taken_by_who_knows_them(blobs: Blobs, blob_url: str) -> None:
    """Those of the first version; and those that a coordinator finds which was started without its --database."""
    kept, stray = blobs.put([b"kept"]), blobs.put([b"stray"])
    with pytest.raises(EnvironmentProblem, match="somebody else"):
        blobs.claim("a" * 32, set())
    blobs.claim("a" * 32, {kept})
    assert blobs.stray({kept}) == [stray]
    with pytest.raises(EnvironmentProblem, match="belong to aaaa"):
        blobs.claim("b" * 32, {kept})


def test_two_prefixes_of_a_bucket_do_not_meet(blob_url: str) -> None:
    one, two = Blobs(f"{blob_url}/one"), Blobs(f"{blob_url}/two")
    one.claim("1" * 32, set())
    two.claim("2" * 32, set())
    name = one.put([b"x"])
    assert two.sweep(set()) == 0 and one.read(Place(name, 0, 1)) == b"x"


def test_folders_are_made_in_the_place_that_was_given_and_never_above_it() -> None:
    Shares.folders.clear()
    blobs = Blobs("cwshares://server/place")
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        blobs.put([b"x"])
    assert not Shares.folders
    Shares.folders.add(blobs._root)
    for _ in range(3):
        name = blobs.put([b"x"])
        assert blobs.read(Place(name, 0, 1)) == b"x"
        blobs.put([b"y"])
    assert all(folder.startswith(blobs._root) for folder in Shares.folders)


# A folder


def test_a_blob_is_synced_and_so_are_the_folders_to_it(
    folder: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    name = folder.put([b"x"])
    root = tmp_path / "blobs"
    assert synced[0] == str(tmp_path) and synced[1] == str(root), "the names of the folders"
    assert name in synced[2], "the content, under its temporary name"
    assert synced[3] == str(root / name[:2]) and len(synced) == 4, "its name"
    assert (root / name[:2] / name).stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_said_and_loses_nothing(folder: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(folder, 0)
    writer.add(b"chunk", leaf_hash(b"chunk"))

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", full)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            writer.flush()
    segment = writer.flush()
    assert segment and folder.sweep({segment.blob}) == 0


def test_an_interrupted_write_is_swept(folder: Blobs, tmp_path: Path) -> None:
    name = folder.put([b"x"])
    (tmp_path / "blobs" / name[:2] / f".{name}.{secrets.token_hex(8)}.tmp").write_bytes(b"half")
    assert folder.sweep({name}) == 1
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [name]


# A store that fails


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("read timed out"), OutageError),
        (ConnectionResetError(errno.ECONNRESET, "reset"), OutageError),
        (BackendError("SlowDown: reduce your request rate\nRequestId 7"), OutageError),
        (OSError(errno.EIO, "endpoint https://u:geheim@store failed"), OutageError),
        (PermissionError("Access Denied"), EnvironmentProblem),
        (FileNotFoundError("The specified bucket does not exist"), EnvironmentProblem),
    ],
)
def test_errors_of_a_store_are_one_line_each(
    error: Exception, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs("cwobjects://u:geheim@store/prefix")
    name = blobs.put([b"x"])
    monkeypatch.setattr(Objects, "failing", error)
    calls = [
        lambda: blobs.put([b"x"]),
        lambda: blobs.read(Place(name, 0, 1)),
        lambda: blobs.sweep(set()),
        lambda: blobs.claim("a" * 32, set()),
        lambda: blobs.delete([name]),
    ]
    for call in calls[: 3 if isinstance(error, FileNotFoundError) else 5]:
        with pytest.raises(EnvironmentProblem) as caught:
            call()
        told = str(caught.value)
        assert type(caught.value) is kind and "\n" not in told and "geheim" not in told, told


def test_urls_of_blobs_that_cannot_be() -> None:
    with pytest.raises(EnvironmentProblem, match="cannot open the blob store") as caught:
        Blobs("nosuchprotocol://user:geheim@x")
    assert "geheim" not in str(caught.value)
    with pytest.raises(UsageError, match="a cache in front"):
        Blobs("simplecache::memory://x")
