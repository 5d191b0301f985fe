"""Runs one coordinator until SIGTERM: FOLDER LISTEN.

CRASH_AT=POINT,... makes it kill itself (SIGKILL) once at each of these points, in whatever order they come, and be
started again at once; crashes.txt in its folder remembers them. Points:

``move:PHASE:before`` and ``:after``: the transaction in which a study comes to that phase is about to be committed,
    and is committed;
``sign:LABEL``: a record is about to be signed;
``segment:KIND:before`` and ``:after``: a segment of an update, of shares, answers, a sum, a relayed item or initial
    weights is in its blob and not yet in the database, and is there;
``reply:RPC``: that call's work is done, and its caller has not heard of it.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kit"))

from fault_crashes import Crashes, after_commit, hurry, supervise

from cipherward.coordinator.daemon import service, upkeep
from cipherward.coordinator.daemon.logs import configure_logs
from cipherward.coordinator.rounds import quorum
from cipherward.coordinator.store.chunks import ChunkTable
from cipherward.coordinator.store.database import Store
from cipherward.coordinator.store.studies import StudyTable
from cipherward.crypto.signing import SigningKey


def arm(crashes):
    note = after_commit(Store, crashes)
    _arm_moves(note)
    _arm_segments(note)
    sign, made = SigningKey.sign, service.implementation

    def signing(self, label, *args):
        crashes.at(f"sign:{label.name}")
        return sign(self, label, *args)

    def replying(handler):
        async def call(call, request):
            reply = await handler(call, request)
            crashes.at(f"reply:{call.rpc}")
            return reply

        return call

    def implementation(core):
        handlers = dict(made(core))
        wanted = {point.partition(":")[2] for point in crashes.left if point.startswith("reply:")}
        return {rpc: replying(each) if rpc in wanted else each for rpc, each in handlers.items()}

    SigningKey.sign, service.implementation = signing, implementation


def _arm_moves(note):
    """A move is a study saved at another round, phase or life than it was."""
    everything, save = StudyTable.all, StudyTable.save
    known = {}

    def place(state):
        return state.round, state.phase, state.life

    def load(self):
        rows = everything(self)
        known.update({row.study: place(row.state) for row in rows})
        return rows

    def saving(self, study, state, *args):
        save(self, study, state, *args)
        if known.get(study) != place(state):
            known[study] = place(state)
            note(f"move:{state.phase.value if state.running else state.life.value}")

    StudyTable.all, StudyTable.save = load, saving


def _arm_segments(note):
    add = ChunkTable.add

    def adding(self, name, part):
        add(self, name, part)
        pieces = name.split("/")  # STUDY/ROUND/KIND/..., or STUDY/KIND/...
        note(f"segment:{pieces[2] if pieces[1].isdigit() else pieces[1]}")

    ChunkTable.add = adding


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await service.Service(service.Settings(Path(sys.argv[1]), sys.argv[2])).run(lambda address: None, stop)


if "CRASH_AT" in os.environ:
    supervise()
    arm(Crashes.from_environment(sys.argv[1]))
if "HURRY" in os.environ:
    hurry(quorum, GRACE_SECONDS=1.0)
    hurry(upkeep, TICK_SECONDS=0.05)
configure_logs()
asyncio.run(main())
