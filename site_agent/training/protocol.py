"""Frames between the agent and its trainer: a JSON header and raw arrays. No pickle: the trainer runs task
code, and what comes back from it must not be able to run anything in the daemon.

A frame is the header's length (4 bytes, big-endian), the header in UTF-8, then the bytes of the arrays that
the header's ``arrays`` lists, in that order, little-endian.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import FormatError

_MAX_HEADER = 64 * 2**20
_MAX_ARRAY_BYTES = 16 * 2**30
_PIECE = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}

Array = NDArray[np.float32] | NDArray[np.float64]


def send(connection: socket.socket, header: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
    """Send one frame of one-dimensional float32 or float64 arrays. Raises OSError if the peer is gone."""
    arrays = arrays or {}
    listed = [
        {"name": name, "dtype": str(array.dtype), "count": len(array)} for name, array in arrays.items()
    ]
    encoded = json.dumps({**header, "arrays": listed}).encode()
    connection.sendall(len(encoded).to_bytes(4, "big") + encoded)
    for array in arrays.values():
        connection.sendall(np.ascontiguousarray(array, dtype=_DTYPES[str(array.dtype)]).data.cast("B"))


def receive(
    connection: socket.socket, deadline: float | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The next frame. ``deadline``: in seconds of ``time.monotonic``.

    Raises FormatError for what is not a frame, EOFError if the peer closes, TimeoutError at the deadline,
    OSError.
    """
    length = int.from_bytes(_exactly(connection, 4, deadline), "big")
    if length > _MAX_HEADER:
        raise FormatError(f"a frame's header of {length} bytes", why=f"the limit is {_MAX_HEADER}")
    try:
        header = json.loads(_exactly(connection, length, deadline))
        described = [
            (str(item["name"]), _DTYPES[item["dtype"]], int(item["count"])) for item in header["arrays"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("a frame's header is malformed", why=type(error).__name__) from error
    if any(number < 0 for _, _, number in described):
        raise FormatError("a frame announces an array of negative length")
    if sum(dtype.itemsize * number for _, dtype, number in described) > _MAX_ARRAY_BYTES:
        raise FormatError("a frame announces too much data", why=f"the limit is {_MAX_ARRAY_BYTES} bytes")
    arrays: dict[str, Array] = {}
    for name, dtype, number in described:
        arrays[name] = np.frombuffer(_exactly(connection, dtype.itemsize * number, deadline), dtype=dtype)
    return header, arrays


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytearray:
    """Grows as data arrives: an announced length alone allocates nothing."""
    out = bytearray()
    while len(out) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        piece = connection.recv(min(_PIECE, count - len(out)))
        if not piece:
            raise EOFError
        out += piece
    return out
