"""Run under ``faults.c``: every step of a coordinator's round over mTLS, with each of its writes failing in turn.

Usage: FOLDER STRIDE STEP..., as ``io_site.py``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from io_injector import KINDS, Faults, load  # noqa: E402

played = load("played_sites", HERE.parents[2] / "contract" / "conftest.py")

from cipherward.coordinator.daemon import sums  # noqa: E402
from cipherward.coordinator.fsck import Places, check  # noqa: E402
from cipherward.errors import CipherwardError, EnvironmentProblem, WireError, from_wire  # noqa: E402
from cipherward.proto.v1 import coordinator_pb2 as pb  # noqa: E402
from cipherward.proto.v1.common_pb2 import ErrorDetail  # noqa: E402

PARAMETERS = 5000
MODEL = b"\x07" * 32


def told(error: grpc.RpcError) -> CipherwardError:
    """The coordinator's own words."""
    [detail] = [value for key, value in error.trailing_metadata() or () if key == "cw-error-bin"]
    said = ErrorDetail.FromString(detail)
    return from_wire(WireError(said.code, said.what, said.why, said.fix))


class Trial:
    """A coordinator's folder, put back to one moment again and again, and what the sites do to it."""

    def __init__(self, folder: Path) -> None:
        played.PARAMETERS = PARAMETERS
        self.world = played.World(folder)
        self.folder, self.saved = self.world.folder, folder / "saved"
        params = played.suite("shared-key").parameters(played.SET, played.BOUND)
        side = played.site_side("shared-key")
        length, self.chunks = played.Layout(PARAMETERS, 3).length, []
        with side.cipher(side.generate_key(params), b"") as cipher:
            for seed in range(4):
                vector = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
                vector[-1] = 1.0
                self.chunks.append(list(cipher.encrypt(vector)))
        self.signed, self.trust = self.world.manifest()
        self.sites: list[Any] = []

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.saved, self.folder)

    def attach(self, address: str) -> None:
        self.address = address
        self.sites = self.world.sites(address, self.trust)

    async def detach(self) -> None:
        for site in self.sites:
            await site.channel.close()

    # Steps, each of which may be repeated

    async def study(self) -> None:
        await self.world.operator(self.address).start(self.signed, self.world.weights)

    async def keys(self) -> None:
        for site in self.sites:
            await self.sites[0].put_relay(self.sites[0].key_item(site.name))

    async def joins(self) -> None:
        for site in self.sites:
            await site.join(1)

    async def upload(self) -> None:
        header = await self.sites[0].header(1)
        stored = (await self.sites[0].stub.GetUploadState(header)).chunks_stored
        await self.sites[0].send("Upload", self.sites[0].messages(header, self.chunks[0], stored))

    async def commits(self) -> None:
        for site, chunks in zip(self.sites, self.chunks, strict=True):
            await site.commit(1, chunks)

    async def reports(self) -> None:
        for site in self.sites:
            await site.report(1, MODEL)

    async def uploads(self) -> None:
        for site, chunks in zip(self.sites, self.chunks, strict=True):
            await site.upload(1, chunks)


BEFORE = ["study", "keys", "joins", "uploads", "commits", "reports"]
REACHED = {
    "study": lambda s: s.phase == pb.PHASE_KEYS,
    "keys": lambda s: s.phase == pb.PHASE_OPEN,
    "joins": lambda s: s.phase == pb.PHASE_UPLOAD,
    "upload": lambda s: s.phase == pb.PHASE_UPLOAD,
    "uploads": lambda s: s.phase == pb.PHASE_UPLOAD,
    "commits": lambda s: s.phase == pb.PHASE_RELEASE,
    "reports": lambda s: s.round == 2 and s.phase == pb.PHASE_OPEN,
}


async def outcome(trial: Trial, step: str) -> Any:
    found = await trial.sites[1].until(REACHED[step], 10)
    said: dict[str, Any] = {"round": found.round, "phase": found.phase}
    if step == "commits":
        said["sum"] = await trial.sites[0].fetch_sum(1)
    if step == "upload":
        header = await trial.sites[0].header(1)
        said["stored"] = (await trial.sites[0].stub.GetUploadState(header)).chunks_stored
    return said


def problems(trial: Trial) -> list[str]:
    return check(Places(trial.folder)).problems


async def attempt(trial: Trial, step: str, faults: Any, kind: str, at: int) -> list[CipherwardError]:
    """The step with a fault; what the callers were told."""
    faults.arm(kind, at)
    try:
        await getattr(trial, step)()
        if step == "commits":
            await asyncio.sleep(0.3)  # the sum, in the background
        return []
    except grpc.RpcError as error:
        said = told(error)
        assert isinstance(said, EnvironmentProblem) and "\n" not in str(said), said
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        return [said]
    finally:
        faults.disarm()


async def enumerate_faults(trial: Trial, step: str, kind: str, stride: int) -> int:
    faults = Faults.of_this_process()
    trial.reset()
    async with played.running(trial.folder) as address:
        trial.attach(address)
        await getattr(trial, step)()
        expected = await outcome(trial, step)
        await trial.detach()
    number = 1
    while True:
        trial.reset()
        async with played.running(trial.folder) as address:
            trial.attach(address)
            raised = await attempt(trial, step, faults, kind, number)
            hits, called = faults.hits, f"{step}: {kind} at call {number} ({faults.last})"
            try:
                assert problems(trial) == [], problems(trial)
                if hits:
                    await getattr(trial, step)()
                assert await outcome(trial, step) == expected
            except BaseException as error:
                raise AssertionError(f"{called}: {raised}") from error
            await trial.detach()
        assert problems(trial) == [], (called, problems(trial))
        if not hits:
            return number
        number += stride


async def start(trial: Trial, kind: str, stride: int) -> int:
    """Starting on a folder in which no coordinator ran yet."""
    faults, number = Faults.of_this_process(), 1
    while True:
        trial.reset()
        faults.arm(kind, number)
        try:
            async with played.running(trial.folder):
                faults.disarm()
        except EnvironmentProblem as error:
            assert "\n" not in str(error), error
        finally:
            faults.disarm()
        if not faults.hits:
            return number
        called = f"start: {kind} at call {number} ({faults.last})"
        try:
            async with played.running(trial.folder) as address:
                trial.attach(address)
                await trial.study()
                await trial.detach()
        except BaseException as error:
            raise AssertionError(called) from error
        assert problems(trial) == [], (called, problems(trial))
        number += stride


async def main() -> None:
    folder, stride, *steps = sys.argv[1:]
    sums.RETRY_SECONDS = 0.05
    counted: dict[str, int] = {}
    for step in steps:
        trial = Trial(Path(folder) / step)
        if step != "start":
            async with played.running(trial.folder) as address:
                trial.attach(address)
                for before in BEFORE[: BEFORE.index("uploads" if step == "upload" else step)]:
                    await getattr(trial, before)()
                    await outcome(trial, before)
                await trial.detach()
        shutil.copytree(trial.folder, trial.saved)
        for kind in KINDS:
            run = (
                start(trial, kind, int(stride))
                if step == "start"
                else enumerate_faults(trial, step, kind, int(stride))
            )
            counted[f"{step} {kind}"] = await run
    print(json.dumps(counted))


if __name__ == "__main__":
    asyncio.run(main())
