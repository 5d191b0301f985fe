"""Runs one coordinator until SIGTERM."""

import asyncio
import signal
import sys
from pathlib import Path

from cipherward.coordinator.daemon.service import Service, Settings


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await Service(Settings(Path(sys.argv[1]), sys.argv[2])).run(lambda address: None, stop)


asyncio.run(main())
