"""The client processes, as the benchmark holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cipherward.errors import UnavailableError

_MODULE = "cipherward.evaluation.bench.coordinator.client"


class Clients:
    """``processes`` of them share the sites."""

    def __init__(self, folder: Path, names: Sequence[str], processes: int) -> None:
        processes = min(processes, len(names))
        self.parts: list[tuple[int, Sequence[str]]] = []
        for number in range(processes):
            first, end = (at * len(names) // processes for at in (number, number + 1))
            self.parts.append((first, names[first:end]))
        self._log = (folder / "clients.log").open("ab")
        self._running = [
            subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-m", _MODULE, str(folder), str(first), *part],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            for first, part in self.parts
        ]
        self._threads = ThreadPoolExecutor(max_workers=processes)
        for process in self._running:
            self._reply(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._threads.shutdown()
        self._log.close()

    def everywhere(self, do: str, **arguments: Any) -> list[Any]:
        """All processes do it at the same time; their results. UnavailableError with what went wrong."""
        return self.each(do, [arguments] * len(self._running))

    def each(self, do: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The same, each process with arguments of its own."""
        for process, mine in zip(self._running, arguments, strict=True):
            self._send(process, do, mine)
        return list(self._threads.map(self._reply, self._running))

    def first(self, do: str, **arguments: Any) -> Any:
        """The first process alone does it."""
        self._send(self._running[0], do, arguments)
        return self._reply(self._running[0])

    def _send(self, process: subprocess.Popen[str], do: str, arguments: Mapping[str, Any]) -> None:
        if process.stdin is not None:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()

    def _reply(self, process: subprocess.Popen[str]) -> Any:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise UnavailableError("a client process of the benchmark ended", fix=f"See {self._log.name}")
        reply = json.loads(line)
        if "failed" in reply:
            raise UnavailableError("a client process of the benchmark failed", why=reply["failed"])
        return reply["done"]
