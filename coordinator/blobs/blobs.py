"""Immutable blobs. One that was put and recorded in the store is there for good; one that was not recorded
(a crash came between) is swept away at the next start."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import fsspec

from cipherward.coordinator.store.chunks import Place
from cipherward.durable import explained, write_file
from cipherward.errors import EnvironmentProblem, FormatError

_NAME_BYTES = 16


class Blobs:
    """Blobs below one URL. Threads may share it."""

    def __init__(self, url: str) -> None:
        """``file:///PATH`` or any URL that fsspec knows; raises EnvironmentProblem."""
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise EnvironmentProblem(
                f"cannot open the blob store {url}", why=str(error), fix="Check its URL and access rights"
            ) from error
        self._local = "file" in self._files.protocol

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"

    def put(self, parts: Sequence[bytes]) -> str:
        """Store the parts as one blob, durably; returns its name. EnvironmentProblem if the disk is full."""
        name = secrets.token_hex(_NAME_BYTES)
        path = self._path(name)
        content = b"".join(parts)
        with explained("write", path):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if not self._local:
                self._files.pipe_file(path, content)
        if self._local:
            write_file(Path(path), content, mode=0o600)
        return name

    def read(self, place: Place) -> bytes:
        """Those bytes; raises EnvironmentProblem, or FormatError if the blob is too short."""
        path = self._path(place.blob)
        with explained("read", path):
            content: bytes = self._files.cat_file(path, start=place.start, end=place.end)
        if len(content) != place.end - place.start:
            raise FormatError(f"blob {place.blob} is cut short", fix="Check the coordinator's disk")
        return content

    def delete(self, names: Sequence[str]) -> None:
        """Remove blobs; those that are gone already are fine."""
        for name in names:
            path = self._path(name)
            with explained("delete", path):
                try:
                    self._files.rm_file(path)
                except FileNotFoundError:
                    continue

    def sweep(self, used: set[str]) -> int:
        """Delete what the store does not know; returns how many. Only while nothing is being put."""
        with explained("list", self._root):
            found = [path.rpartition("/")[2] for path in self._files.find(self._root)]
        stray = [name for name in found if name not in used]
        for name in stray:
            if name.endswith(".tmp"):
                with explained("delete", name):
                    self._files.rm_file(f"{self._root}/{name[1:3]}/{name}")
        self.delete([name for name in stray if not name.endswith(".tmp")])
        return len(stray)
