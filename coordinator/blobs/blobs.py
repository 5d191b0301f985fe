"""Immutable blobs. One that was put and recorded in the store is there for good; one that was not recorded
(a crash came between) is swept away at the next start."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from cipherward.coordinator.store.chunks import Place
from cipherward.durable import explained, fsync_directory, write_bulk
from cipherward.errors import CipherwardError, EnvironmentProblem, FormatError, OutageError, UsageError

_NAME_BYTES = 16
_OURS = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{30}|\.\1[0-9a-f]{30}\.[0-9a-f]{16}\.tmp)")
_MARK = "owner"
"""Holds the name of the database that knows these blobs."""


class Blobs:
    """Blobs below one URL. Threads may share it.

    In a folder, a blob that was put is on disk, and so are the folders that lead to it. On an object store it is
    what the store says of an object that it has acknowledged.
    """

    def __init__(self, url: str) -> None:
        """``file:///PATH`` or any URL that fsspec knows; nothing is made there yet. EnvironmentProblem, UsageError."""
        self._url = re.sub(r"//[^/@]*@", "//***@", url)
        self._secret = next(iter(re.findall(r"//[^/@:]*:([^/@]+)@", url)), "")
        if "::" in url:
            raise UsageError(
                f"cannot use the blob store {self._url}",
                why="what a cache in front of it has taken is not stored yet",
                fix="Give the URL of the store itself",
            )
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # the backends' own, of many kinds
            raise self._problem("open the blob store", self._url, error) from error
        self._local = "file" in self._files.protocol
        self._folders: set[str] = set()

    def _problem(self, what: str, path: str, error: Exception) -> EnvironmentProblem:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if self._secret:
            path, reason = (text.replace(self._secret, "***") for text in (path, reason))
        if isinstance(error, FileNotFoundError | PermissionError | ValueError | ImportError):
            return EnvironmentProblem(
                f"cannot {what} {path}", why=reason, fix="Check the blob store's URL and access rights"
            )
        return OutageError(
            f"cannot {what} {path}",
            why=reason,
            fix="Check the blob store, its account and the network. It is tried again by itself",
        )

    @contextmanager
    def _explained(self, what: str, path: str) -> Iterator[None]:
        if self._local:
            with explained(what, path):
                yield
            return
        try:
            yield
        except CipherwardError:
            raise
        except Exception as error:  # the backends' own, of many kinds
            raise self._problem(what, path, error) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name.lstrip('.')[:2]}/{name}"

    def _write(self, path: str, content: Sequence[bytes] | memoryview) -> None:
        folder = path.rpartition("/")[0]
        if self._local:
            if folder not in self._folders:
                # A folder that a power cut takes back takes everything in it.
                with explained("make the folder", folder):
                    for made in dict.fromkeys((Path(self._root), Path(folder))):
                        made.mkdir(parents=True, exist_ok=True)
                        fsync_directory(made.parent)
                self._folders.add(folder)
            write_bulk(Path(path), content, mode=0o600)
            return
        whole = bytes(content) if isinstance(content, memoryview) else b"".join(content)
        with self._explained("write", path):
            try:
                self._files.pipe_file(path, whole)
            except (
                FileNotFoundError
            ):  # a store that has folders; nothing above them is made, least of all a bucket
                with suppress(FileExistsError):
                    self._files.mkdir(folder, create_parents=False)
                self._files.pipe_file(path, whole)

    def put(self, content: Sequence[bytes] | memoryview) -> str:
        """Store parts that follow each other, or memory from a page's beginning, as one blob, durably; returns its
        name. EnvironmentProblem if the disk is full."""
        name = secrets.token_hex(_NAME_BYTES)
        self._write(self._path(name), content)
        return name

    def read(self, place: Place) -> bytes:
        """Those bytes; raises EnvironmentProblem, or FormatError if the blob is too short."""
        path = self._path(place.blob)
        with self._explained("read", path):
            content: bytes = self._files.cat_file(path, start=place.start, end=place.end)
        if len(content) != place.end - place.start:
            raise FormatError(f"blob {place.blob} is cut short", fix="Check the coordinator's disk")
        return content

    def lost(self, name: str) -> bool:
        """Whether that blob is gone for good: it is not here, and the mark that ``claim`` left is.

        Without its mark the place is another than it was, such as a volume that is not mounted, and the blob may
        come back with it. Raises EnvironmentProblem if the store cannot be asked.
        """
        return self._is_there(f"{self._root}/{_MARK}") and not self._is_there(self._path(name))

    def _is_there(self, path: str) -> bool:
        # Not by the backend's exists(), which takes any error for a no.
        with self._explained("read", path):
            try:
                self._files.cat_file(path, start=0, end=1)
            except FileNotFoundError:
                return False
        return True

    def delete(self, names: Sequence[str]) -> None:
        """Remove blobs; those that are gone already are fine."""
        for name in names:
            path = self._path(name)
            with self._explained("delete", path):
                try:
                    self._files.rm_file(path)
                except FileNotFoundError:
                    continue

    def discard(self, names: Sequence[str]) -> None:
        """Remove blobs that no row names; those that cannot be removed now are swept at the next start."""
        with suppress(EnvironmentProblem):
            self.delete(names)

    def claim(self, database: str, used: set[str]) -> None:
        """These are the blobs of the database of that name, which knows ``used``.

        Raises EnvironmentProblem if they are another's, or if there are blobs of which the database knows none:
        a sweep would take them for its own leavings.
        """
        path = f"{self._root}/{_MARK}"
        with self._explained("read", path):
            try:
                owner = self._files.cat_file(path).decode(errors="replace").strip()
            except FileNotFoundError:
                owner = ""
        if not owner:
            found = set(self._found())
            if found and not found & used:
                owner = "somebody else"
        if owner and owner != database:
            raise EnvironmentProblem(
                f"the blobs at {self._url} are not of this database",
                why=f"they belong to {owner[:40]}, it is {database}",
                fix="Give each coordinator a place of its own with --blobs, and its own --database",
            )
        if not owner:
            self._write(path, [f"{database}\n".encode()])

    def _found(self) -> list[str]:
        with self._explained("list", self._root):
            self._files.invalidate_cache()
            below = [path[len(self._root) :].strip("/") for path in self._files.find(self._root)]
        return [match[2] for match in map(_OURS.fullmatch, below) if match]

    def stray(self, used: set[str]) -> list[str]:
        """Names of blobs that the store does not know, and of files whose writing was interrupted."""
        return sorted(name for name in self._found() if name not in used)

    def sweep(self, used: set[str]) -> int:
        """Delete what the store does not know; returns how many. Only while nothing is being put.

        What does not look like a blob is left alone.
        """
        stray = self.stray(used)
        self.delete(stray)
        return len(stray)
