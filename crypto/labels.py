"""Domain separation. Every hash, signature, seal and key derivation names its version and purpose, so that
bytes made for one purpose mean nothing in another."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from cipherward.ids import Digest


class Label(StrEnum):
    """All purposes in use. Adding one is fine; changing or reusing one is a break of the protocol."""

    ANCHOR = "cipherward/v1/anchor"
    REQUEST = "cipherward/v1/request"
    CREDENTIAL = "cipherward/v1/credential"
    STATUS_LIST = "cipherward/v1/status-list"
    MANIFEST = "cipherward/v1/manifest"
    OPERATOR_COMMAND = "cipherward/v1/operator-command"
    ROUND_RECORD = "cipherward/v1/round-record"
    JOIN = "cipherward/v1/join"
    PLAN_RECORD = "cipherward/v1/plan-record"
    COMMIT = "cipherward/v1/commit"
    ACKNOWLEDGEMENT = "cipherward/v1/acknowledgement"
    CLOSE_RECORD = "cipherward/v1/close-record"
    ABORT_RECORD = "cipherward/v1/abort-record"
    ANSWER = "cipherward/v1/answer"
    SUM_CHECK = "cipherward/v1/sum-check"
    MODEL_REPORT = "cipherward/v1/model-report"
    RELAY_KEY = "cipherward/v1/relay-key"
    RELAY = "cipherward/v1/relay"
    SEAL_SHARED_KEY = "cipherward/v1/seal/shared-key"
    SEAL_SHARE = "cipherward/v1/seal/share"
    SEAL_ANSWER = "cipherward/v1/seal/answer"
    SEAL_MODEL = "cipherward/v1/seal/model"
    PUBLIC_POLYNOMIAL = "cipherward/v1/public-polynomial"
    ATTEMPT_KEY = "cipherward/v1/attempt-key"
    ATTEMPT_ERRORS = "cipherward/v1/attempt-errors"
    ATTEMPT_SHARES = "cipherward/v1/attempt-shares"
    ANSWER_KEY = "cipherward/v1/answer-key"
    SUM_CHECK_ORDER = "cipherward/v1/sum-check-order"
    SHARED_KEY_DIGEST = "cipherward/v1/shared-key-digest"
    MODEL_DIGEST = "cipherward/v1/model-digest"
    FILE_DIGEST = "cipherward/v1/file-digest"
    TASK_DIGEST = "cipherward/v1/task-digest"
    TRANSCRIPT = "cipherward/v1/transcript"
    LEDGER = "cipherward/v1/ledger"
    PATIENT = "cipherward/v1/patient"
    FINGERPRINT = "cipherward/v1/fingerprint"
    ROOT_KEY = "cipherward/v1/root-key"


def framed(label: Label, *parts: bytes) -> bytes:
    """An injective encoding: the label and each part, each behind its length (8 bytes, big-endian)."""
    out = bytearray()
    for part in (label.value.encode(), *parts):
        out += len(part).to_bytes(8, "big")
        out += part
    return bytes(out)


def digest(label: Label, *parts: bytes | memoryview) -> Digest:
    """SHA-256 over ``framed``; a part of bytes, however large, is not copied."""
    hashed = hashlib.sha256()
    for part in (label.value.encode(), *parts):
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return Digest(hashed.digest())
