"""The coordinator as a process with its database on PostgreSQL: killed, its server restarted, started twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any

import grpc
import numpy as np
import pytest
from kit_postgresql import PrivatePostgresql, name_of
from kit_process import LAUNCHER, process, spawn

from cipherward.errors import OutageError
from cipherward.proto.v1 import coordinator_pb2 as pb


def command(name: str, world: Any, url: str) -> subprocess.CompletedProcess[str]:
    arguments = [name, "--dir", str(world.folder), "--database", url, "--json"]
    return subprocess.run([sys.executable, "-c", LAUNCHER, *arguments], capture_output=True, text=True)


async def again(call: Any, *arguments: Any) -> Any:
    """As a site does while the coordinator is not available."""
    while True:
        try:
            return await call(*arguments)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_a_study_survives_kills_of_the_coordinator_and_restarts_of_the_server(
    world: Any, cipher: Any, updates: Any, postgresql: PrivatePostgresql
) -> None:
    url = postgresql.new_database()
    with process(world.folder, "--database", url) as (running, address):
        sites = await world.started(address, rounds=1)
        trust = sites[0].trust
        # The server goes down and comes back between two calls.
        await asyncio.gather(*(site.join(1) for site in sites))
        postgresql.restart()
        header = await again(sites[0].header, 1)
        await again(lambda: sites[0].send("Upload", sites[0].messages(header, updates[0][1][:1])))
        # It is down: clean refusals, and what was acknowledged is there afterwards.
        postgresql.stop("immediate")
        try:
            for _ in range(3):
                async with world.refused(OutageError, "database cannot be used"):
                    await sites[1].upload(1, updates[1][1])
        finally:
            postgresql.start()
        assert (await again(sites[0].stub.GetUploadState, header)).chunks_stored == 1
        await again(lambda: sites[0].send("Upload", sites[0].messages(header, updates[0][1], 1)))
        await again(sites[0].commit, 1, updates[0][1])
        # Killed, with commits of the others under way.
        late = [asyncio.ensure_future(sites[i].contribute(1, updates[i][1])) for i in (1, 2)]
        await asyncio.sleep(0.1)
        running.send_signal(signal.SIGKILL)
        running.wait()
        await asyncio.gather(*late, return_exceptions=True)
    assert not (world.folder / "coordinator.db").exists()
    with process(world.folder, "--database", url) as (_, address):
        sites = world.sites(address, trust)
        for i in (1, 2, 3):  # from where each was
            header = await sites[i].header(1)
            stored = (await sites[i].stub.GetUploadState(header)).chunks_stored
            await sites[i].send("Upload", sites[i].messages(header, updates[i][1], stored))
            await sites[i].commit(1, updates[i][1])
        await sites[0].until(lambda s: s.phase == pb.PHASE_RELEASE)
        total = cipher.open_sum(await sites[0].fetch_sum(1), sites[0].length, 4)
        expected = sum(update.astype(float) for update, _ in updates)
        np.testing.assert_allclose(total, expected, atol=cipher.params.error_bound(4))
        shown = await asyncio.to_thread(command, "status", world, url)
        assert [(s["study"], s["phase"]) for s in json.loads(shown.stdout)["studies"]] == [
            ("trial", "release")
        ]
        checked = await asyncio.to_thread(command, "fsck", world, url)
        assert (checked.returncode, json.loads(checked.stdout)["problems"]) == (0, [])
        await asyncio.gather(*(site.report(1, b"\x07" * 32) for site in sites))
        assert (await sites[0].snapshot()).state == pb.STUDY_STATE_FINISHED


@pytest.mark.slow
async def test_a_second_process_from_another_folder_is_refused_and_an_overtaken_one_stops(
    world: Any, postgresql: PrivatePostgresql
) -> None:
    url = postgresql.new_database()
    twin = world.folder.parent / "copy"
    subprocess.run(["cp", "-a", world.folder, twin], check=True)
    with process(world.folder, "--database", url) as (running, address):
        await world.started(address)
        second = spawn(twin, "127.0.0.1:0", "--database", url, "--blobs", f"file://{world.folder}/blobs")
        assert await asyncio.to_thread(second.wait, 20) == 3
        assert second.stdout is not None and second.stdout.read() == ""
        second.stdout.close()
        assert "another coordinator uses the database" in (twin / "log").read_text()
        # Cut off for so long that another one had the database: it finds out by itself, and stops.
        postgresql.psql("UPDATE identity SET generation = generation + 1", name_of(url))
        postgresql.end_sessions(url)
        assert await asyncio.to_thread(running.wait, 20) == 3, "it looks by itself"
    assert "it took it when this process had lost its connection" in (world.folder / "log").read_text()


def test_a_password_from_the_environment(world: Any, postgresql: PrivatePostgresql) -> None:
    """libpq's own ways work: nothing secret on the command line. The server's answer shows that it was sent."""
    url = postgresql.new_database().replace("tester@", "keyed@")
    postgresql.psql("DROP ROLE IF EXISTS keyed")
    postgresql.psql("CREATE ROLE keyed LOGIN PASSWORD 'geheim'")
    postgresql.psql(f"ALTER DATABASE {name_of(url)} OWNER TO keyed")
    postgresql.require_password("keyed")
    try:
        refused = command("status", world, url)
        assert refused.returncode == 3 and "no password supplied" in refused.stderr
        secret = world.folder.parent / "pgpass"
        secret.write_text("*:*:*:keyed:geheim\n")
        secret.chmod(0o600)
        for variable, value in (("PGPASSWORD", "geheim"), ("PGPASSFILE", str(secret))):
            arguments = ["status", "--dir", str(world.folder), "--database", url]
            told = subprocess.run(
                [sys.executable, "-c", LAUNCHER, *arguments],
                env={**os.environ, variable: value},
                capture_output=True,
                text=True,
            )
            assert "it has no schema yet" in told.stderr, told.stderr
    finally:
        postgresql.require_password(None)
