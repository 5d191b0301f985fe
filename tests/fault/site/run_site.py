"""Runs one site agent: FOLDER COORDINATOR [TRAINER_SOCKET].

CRASH_AFTER=STEP,STEP,... makes it kill itself (SIGKILL) right after the first of these steps that it has not died at
yet, or send itself the signal SIGNAL. CRASH_AT=STEP,... makes it kill itself once at each, in whatever order they come,
and be started again at once. crashes.txt in its folder remembers them. CUT_AT=METHOD,... has the site's link cut right
before it first calls each of these methods of the client. Steps:

``journal:COLUMN`` is that column being on disk, ``journal-before:COLUMN`` the moment before its transaction commits,
``OWNER:METHOD`` that call having returned.

Every update that is trained is copied to the folder ``kept/updates``, and every model to ``kept/models``, by their
digests: the site's own copies go when a round is over.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kit"))

from fault_crashes import Crashes, hurry, supervise
from fault_links import cut_from_within

from cipherward.clock import SystemClock
from cipherward.errors import CipherwardError
from cipherward.site_agent.client import channel
from cipherward.site_agent.client.coordinator import CoordinatorClient
from cipherward.site_agent.daemon import connection, resync, study_loop
from cipherward.site_agent.daemon.agent import Options, run
from cipherward.site_agent.daemon.logging import make_logger
from cipherward.site_agent.daemon.quorum import checking
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.journal.outbox import Outbox
from cipherward.site_agent.state.models import ModelStore

FOLDER = Path(sys.argv[1])
OWNERS = {"outbox": Outbox, "client": CoordinatorClient, "calls": Journal}


def arm(crashes):
    write_in = Journal.write_in

    def writing(self, connection, round_number, **values):
        write_in(self, connection, round_number, **values)
        crashes.at(*(f"journal-before:{column}" for column in values))
        after = [f"journal:{column}" for column in values]
        if any(step in crashes.left for step in after):
            if "SIGNAL" not in os.environ:  # a milder signal lets the transaction go on to its own commit
                connection.commit()
            crashes.at(*after)

    def returning(step, original):
        def call(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            crashes.at(step)
            return result

        return call

    Journal.write_in = writing
    for step in crashes.left:
        owner, _, method = step.partition(":")
        if owner in OWNERS:
            setattr(OWNERS[owner], method, returning(step, getattr(OWNERS[owner], method)))


def keep(owner, method, folder):
    """Keep what a store of files puts."""
    put = getattr(owner, method)
    folder.mkdir(parents=True, exist_ok=True)

    def keeping(self, vector):
        digest = put(self, vector)
        (folder / f"{digest.hex()}.f32").write_bytes(vector.astype("<f4").tobytes())
        return digest

    setattr(owner, method, keeping)


def cut_before_calls(left, orders):
    def cutting(name, original):
        def call(self, *args, **kwargs):
            if name in left:
                left.remove(name)
                cut_from_within(orders, 0.3)
                with (FOLDER / "cuts.txt").open("a") as file:
                    file.write(f"{name}\n")
            return original(self, *args, **kwargs)

        return call

    for name in left:
        setattr(CoordinatorClient, name, cutting(name, getattr(CoordinatorClient, name)))


if "CRASH_AT" in os.environ:
    supervise()
    arm(Crashes.from_environment(FOLDER))
elif "CRASH_AFTER" in os.environ:
    crashes = Crashes(FOLDER / "crashes.txt", os.environ["CRASH_AFTER"].split(","))
    del crashes.left[1:]
    arm(crashes)
keep(Outbox, "put_update", FOLDER / "kept" / "updates")
keep(ModelStore, "put", FOLDER / "kept" / "models")
if "HURRY" in os.environ:
    hurry(study_loop, POLL_SECONDS=0.2, REFUSED_SECONDS=1.0, MAX_BACKOFF_SECONDS=1.0)
    hurry(resync, TURN_SECONDS=0.5, REPEAT_SECONDS=2.0)
    hurry(checking, LEAST_TURN_SECONDS=1.0, WAIT_SECONDS=1.0)
    hurry(connection, FIRST_BACKOFF_SECONDS=0.1, MAX_BACKOFF_SECONDS=1.0)
if "CUT_AT" in os.environ:
    cut_before_calls(os.environ["CUT_AT"].split(","), os.environ["LINK"])
if "KEEPALIVE" in os.environ:
    hurry(
        channel, KEEPALIVE_MS=int(os.environ["KEEPALIVE"]), KEEPALIVE_TIMEOUT_MS=int(os.environ["KEEPALIVE"])
    )
socket = Path(sys.argv[3]) if len(sys.argv) > 3 else None
try:
    run(
        Options(FOLDER, sys.argv[2], trainer_socket=socket, once_finished="ONCE" in os.environ),
        SystemClock(),
        make_logger(json_lines=True),
    )
except CipherwardError as error:
    sys.exit(str(error))
