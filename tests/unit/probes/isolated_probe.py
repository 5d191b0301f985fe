"""A worker that misbehaves on request, for test_isolated.py."""

import ctypes
import os
import signal
import sys
import time

from cipherward.errors import BudgetError
from cipherward.isolated import serve

state = {"value": b"nothing"}


def keep(body: bytes) -> bytes:
    state["value"] = body
    return b""


def crash(_body: bytes) -> bytes:
    ctypes.string_at(0)
    return b""


def hang(_body: bytes) -> bytes:
    time.sleep(60)
    return b""


def refuse(_body: bytes) -> bytes:
    raise BudgetError("spent", why="it is gone", fix="Wait")


def secret_error(body: bytes) -> bytes:
    raise ValueError(f"the secret is {body!r}")


def chatter(_body: bytes) -> bytes:
    print("noise that native code might print")
    os.write(1, b"\x00" * 100)
    return sys.stdin.buffer.read() + b"quiet"


def environment(_body: bytes) -> bytes:
    return repr(dict(os.environ)).encode()


def interrupt(_body: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    return b"still here"


def lie(body: bytes) -> bytes:
    """Write bytes of the parent's choosing where replies go."""
    for fd in range(3, 20):
        try:
            os.write(fd, body)
        except OSError:
            continue
    time.sleep(60)
    return b""


serve(
    {
        "keep": keep,
        "value": lambda _: state["value"],
        "echo": lambda body: body,
        "pid": lambda _: str(os.getpid()).encode(),
        "crash": crash,
        "hang": hang,
        "refuse": refuse,
        "secret_error": secret_error,
        "chatter": chatter,
        "environment": environment,
        "interrupt": interrupt,
        "allocate": lambda body: str(len(bytearray(int(body)))).encode(),
        "zeros": lambda body: bytes(int(body)),
        "lie": lie,
    }
)
