"""Runs one coordinator until SIGTERM, with hardly any calls allowed: FOLDER LISTEN."""

import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from cipherward.coordinator.api.policy import POLICIES
from cipherward.coordinator.daemon.service import Service, Settings
from cipherward.ids import Role


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await Service(Settings(Path(sys.argv[1]), sys.argv[2])).run(lambda address: None, stop)


for rpc, row in POLICIES.items():
    # One step asks for the reports several times; here sites try again far sooner than they do for a hospital.
    if Role.SITE in row.roles and rpc != "GetModelReports":
        POLICIES[rpc] = replace(row, per_second=1.0, burst=1)
asyncio.run(main())
