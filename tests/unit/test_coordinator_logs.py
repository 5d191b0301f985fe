"""A traceback in the coordinator's log says where, and shows no values."""

from __future__ import annotations

import json
from typing import Any

import structlog

from cipherward.coordinator.daemon.logs import configure_logs


def test_a_traceback_holds_no_values(capfd: Any) -> None:
    before = structlog.get_config()
    secret = bytes(range(100, 132))

    def fails(key: bytes) -> None:
        copied = [key]
        raise RuntimeError(f"cannot use {len(copied)} keys")

    try:
        configure_logs()
        try:
            fails(secret)
        except RuntimeError as error:
            structlog.get_logger().error("call failed", exc_info=error)
    finally:
        structlog.configure(**before)
    line = capfd.readouterr().err
    entry = json.loads(line)
    assert entry["event"] == "call failed" and "cannot use 1 keys" in line
    assert [frame["name"] for frame in entry["exception"][0]["frames"]][-1] == "fails"
    assert "locals" not in line and repr(secret)[2:10] not in line and "copied" not in line
