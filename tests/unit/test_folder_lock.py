"""One daemon a folder."""

import subprocess
import sys

import pytest

from cipherward.clock import SystemClock
from cipherward.crypto.pki import member_files
from cipherward.durable import FolderLock
from cipherward.errors import EnvironmentProblem
from cipherward.site_agent.daemon.agent import Options, run
from cipherward.site_agent.daemon.logging import make_logger


def test_a_second_daemon_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom cipherward.durable import FolderLock\n"
        "lock = FolderLock(pathlib.Path(sys.argv[1]), 'a site agent')\nprint('held', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentProblem, match="a site agent is already running in"):
            FolderLock(tmp_path, "a site agent")
        holder.kill()
        holder.wait()
        FolderLock(tmp_path, "a site agent").release()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_second_agent_does_not_start(tmp_path):
    for name in (member_files.REQUEST, member_files.CREDENTIAL):  # a site's folder, at a glance
        (tmp_path / name).touch()
    lock = FolderLock(tmp_path, "a site agent")
    with pytest.raises(EnvironmentProblem, match="already running"):
        run(Options(tmp_path, "localhost:1"), SystemClock(), make_logger(json_lines=True))
    assert not (tmp_path / "trainer.sock").exists()
    lock.release()
