"""``cipherward study`` against a running coordinator."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from cipherward.cli.study import app
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.errors import ProtocolError, UnavailableError


async def invoke(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


async def test_a_study_from_start_to_abort(world: Any, tmp_path: Path) -> None:
    signed, _ = world.manifest()
    manifest, weights = tmp_path / "study.manifest", tmp_path / "initial.f32"
    manifest.write_bytes(armour_signed(Kind.MANIFEST, signed))
    weights.write_bytes(world.weights.astype("<f4").tobytes())
    async with world.running(world.folder) as address:
        common = ["--dir", str(tmp_path / "operator-olga"), "--coordinator", address]
        start = ["start", str(manifest), "--weights", str(weights), *common]
        for _ in range(2):
            done = await invoke(*start)
            assert done.exit_code == 0, done.exception
            assert done.output == "study trial, version 1: started\n"
        other = tmp_path / "other.f32"
        other.write_bytes(weights.read_bytes()[:-4])
        again, _ = world.manifest(study="second")
        manifest.write_bytes(armour_signed(Kind.MANIFEST, again))
        done = await invoke("start", str(manifest), "--weights", str(other), *common)
        assert isinstance(done.exception, ProtocolError) and "initial weights" in str(done.exception)

        found = json.loads((await invoke("status", "--json", *common)).output)
        assert (found["study"], found["phase"], found["rounds"]) == ("trial", "PHASE_KEYS", 2)
        assert [site["name"] for site in found["sites"]] == ["anna", "bert", "cora", "dora"]
        text = (await invoke("status", *common)).output
        assert "trial: running, round 1 of 2, keys" in text and "anna" in text

        watching = asyncio.ensure_future(invoke("watch", *common))
        await asyncio.sleep(0.5)
        done = await invoke("abort", "--study", "trial", "--reason", "wrong data", *common)
        assert done.exit_code == 0, done.exception
        watched = await asyncio.wait_for(watching, 10)
        assert isinstance(watched.exception, ProtocolError) and "wrong data" in str(watched.exception)
        assert watched.output.splitlines()[0] == "trial: running, round 1 of 2, keys"
        assert "aborted by olga: wrong data" in watched.output
        done = await invoke("start", str(manifest), "--weights", str(weights), *common)
        assert done.exit_code == 0, "another study starts beside it"
    done = await invoke("status", *common)
    assert isinstance(done.exception, UnavailableError)
