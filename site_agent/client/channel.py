"""The one connection that a site makes: outwards, to the coordinator, with mutual TLS, by the hospital's
HTTP proxy where there is one."""

from __future__ import annotations

import os
import re

import grpc

from cipherward.errors import UsageError

MAX_MESSAGE_BYTES = 16 * 2**20
"""Signed records are at most 8 MiB, chunks of a sum far less."""
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000


def check_address(address: str) -> str:
    """``HOST:PORT``; raises UsageError."""
    host, _, port = address.rpartition(":")
    known = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    # In the middle of a host, these are of something else: a URL, a path, half of [IPv6].
    if not known or not re.fullmatch(r"\[[^\s\[\]/]+\]|[^\s\[\]/:]+", host):
        raise UsageError(
            f"{address[:120]!r} is not an address", why="it must be HOST:PORT", fix="Check --coordinator"
        )
    return address


def open_channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    """A channel; connects by itself. ``https_proxy`` or ``grpc_proxy`` in the environment names an HTTP
    CONNECT proxy, ``no_proxy`` what it does not apply to; gRPC reads them as every other client does."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Measured for 200 uploads at once: without these buffers grow with the peer's patience.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
        # A connection that a firewall dropped silently is noticed within 40 s. gRPC waits for the longer of the two
        # timeouts, and the second is 60 s unless it is given.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 10_000),
    ]
    return grpc.secure_channel(check_address(address), credentials, options=options)


def proxy_in_use() -> str:
    """The proxy that the environment names, without its password; empty if none."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        if value := os.environ.get(name):
            return value.rpartition("@")[2]
    return ""
