"""Runs one site agent: FOLDER COORDINATOR [TRAINER_SOCKET].

CRASH_AFTER=STEP,STEP,... makes it kill itself (SIGKILL) right after the first of these steps that it has not died at
yet; the file crashes.txt in its folder remembers them. ``journal:COLUMN`` is that column being on disk,
``journal-before:COLUMN`` the moment before its transaction commits, ``OWNER:METHOD`` that call having returned.
"""

import os
import signal
import sys
from pathlib import Path

from cipherward.clock import SystemClock
from cipherward.errors import CipherwardError
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon.agent import Options, run
from cipherward.site_agent.daemon.logging import make_logger
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.journal.outbox import Outbox

OWNERS = {"outbox": Outbox, "client": CoordinatorClient, "calls": Journal}


def crash(step):
    with (Path(sys.argv[1]) / "crashes.txt").open("a") as file:
        file.write(f"{step}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step):
    owner, _, what = step.partition(":")
    if owner.startswith("journal"):
        original = Journal.write_in

        def write_in(self, connection, round_number, **values):
            original(self, connection, round_number, **values)
            if what in values:
                if owner == "journal":
                    connection.commit()
                crash(step)

        Journal.write_in = write_in
    else:
        original = getattr(OWNERS[owner], what)

        def call(self, *args, **kwargs):
            original(self, *args, **kwargs)
            crash(step)

        setattr(OWNERS[owner], what, call)


died = Path(sys.argv[1]) / "crashes.txt"
done = died.read_text().split() if died.exists() else []
steps = [step for step in os.environ.get("CRASH_AFTER", "").split(",") if step and step not in done]
if steps:
    arm(steps[0])
socket = Path(sys.argv[3]) if len(sys.argv) > 3 else None
try:
    run(
        Options(Path(sys.argv[1]), sys.argv[2], trainer_socket=socket, once_finished="ONCE" in os.environ),
        SystemClock(),
        make_logger(json_lines=True),
    )
except CipherwardError as error:
    sys.exit(str(error))
