"""A log that cannot be written loses lines, and ends nothing. What others wrote makes no line of its own in it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from cipherward.coordinator.daemon.logs import configure_logs
from cipherward.lines import lasting
from cipherward.site_agent.daemon.logging import make_logger

COORDINATOR = """
import sys, structlog
from cipherward.coordinator.daemon.logs import configure_logs
configure_logs()
log = structlog.get_logger()
sys.stdin.readline()
for number in range(5000):
    log.info("a line", number=number, text="x" * 100)
print("went on", flush=True)
"""


FORGED = "2026-11-22T00:00:00Z info    round finished"
HOSTILE = f"x\x1b[2J\r\n{FORGED}\u2028\x9b2J\u202e\udc80"
"""As a coordinator may give it as the reason of an aborted round."""


def test_a_reason_of_others_in_a_sites_plain_log():
    log = make_logger(json_lines=False, stream=(stream := io.StringIO()))
    log.warning("round aborted", round=3, reason=HOSTILE, members=["basel", HOSTILE])
    line = stream.getvalue()
    assert line.endswith("\n") and line[:-1].isprintable()
    shown = f"x\ufffd[2J\ufffd\ufffd{FORGED}\ufffd\ufffd2J\ufffd\ufffd"
    assert f"warning round aborted  round=3 reason={shown} members=['basel', " in line


@pytest.mark.parametrize("of", ["site", "coordinator"])
def test_a_reason_of_others_in_a_json_log(of, capfd):
    before = structlog.get_config()
    try:
        if of == "site":
            log = make_logger(json_lines=True, stream=(stream := io.StringIO()))
            log.warning("round aborted", reason=HOSTILE)
            line = stream.getvalue()
        else:
            configure_logs()
            structlog.get_logger().info("call refused", reason=HOSTILE)
            line = capfd.readouterr().err
    finally:
        structlog.configure(**before)
    assert line.endswith("\n") and line[:-1].isprintable() and line.isascii()
    assert json.loads(line)["reason"] == HOSTILE


def test_a_full_disk_under_the_log_and_a_closed_one():
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  its end fails as well
    log = make_logger(json_lines=True, stream=full)
    for number in range(500):
        log.error("a line", number=number, text="x" * 100)
    lasting(full).flush()
    with pytest.raises(OSError, match="No space left"):
        full.close()
    log.error("and after it was closed")


def test_letters_that_the_terminal_does_not_have(tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        make_logger(json_lines=False, stream=stream).info("study refused", reason="Zürich \N{SNOWMAN}")
    assert r"study refused  reason=Z\xfcrich \u2603" in (tmp_path / "log").read_text()


def test_a_reader_that_is_gone():
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    ) as process:
        os.close(writing)
        os.close(reading)
        assert process.communicate("go\n", timeout=30)[0] == "went on\n"
