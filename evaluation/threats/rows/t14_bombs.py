"""T14: a few bytes that crash or fill whoever parses them, and senders that are slow on purpose."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import zstandard

from cipherward.coordinator.api.policy import POLICIES
from cipherward.crypto.records import Plan
from cipherward.errors import CipherwardError
from cipherward.evaluation.bench.memory import PeakMemory, peak_bytes
from cipherward.evaluation.threats.kit.made_up import MadeUpSite, begin, vectors
from cipherward.evaluation.threats.kit.service import Service, study_file
from cipherward.evaluation.threats.row import Case, Context, Figure, Result, Row
from cipherward.proto.v1 import coordinator_pb2 as pb

TENSEAL_BLOB = bytes.fromhex("0a028010190000000000007042")
"""sizes = [2048], no ciphertexts, a scale: TenSEAL crashes when the vector is added to another."""
_VICTIM = f"""
import tenseal
made = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
made.global_scale = 2.0**40
vector = tenseal.ckks_vector_from(made, bytes.fromhex("{TENSEAL_BLOB.hex()}"))
print("parsed", flush=True)
tenseal.ckks_vector(made, [1.0] * 2048) + vector
"""
MIB = 2**20
SLOW = 17
"""One more than the coordinator's fast places."""
WAIT_SECONDS = 12.0
"""For a site that is not slow."""
MEMORY_LIMIT = 96 * MIB
FLOOD = 60


@dataclass
class _Target:
    """A coordinator with a planned round, and a site with a certificate."""

    service: Service
    plan: Plan
    sites: list[MadeUpSite]

    def growth(self, before: int) -> int:
        """Of the coordinator's peak memory, bytes."""
        return peak_bytes(self.service.pid) - before


def _target(folder: Path, sites: int, *changes: str) -> Service:
    return Service(folder, [f"site-{index:02}" for index in range(sites)], changes)


def _planned(service: Service) -> _Target:
    service.start()
    trust = service.study(study_file("quorum", ""))
    sites = begin([service.member(name) for name in service.names], service.address, trust)
    for site in sites:
        site.join(1)
    return _Target(service, sites[0].plan(1), sites)


def _header(target: _Target, site: MadeUpSite, attempt: int = 1) -> pb.UploadMessage:
    header = pb.UploadHeader(study=site.study, round=1, attempt=attempt, plan_digest=target.plan.digest)
    return pb.UploadMessage(header=header)


def _limited(told: str) -> bool:
    return "too often" in told


def _looked_at(told: str) -> str:
    """What was said to one message, which must not be that calls come too often: that says nothing of the bomb."""
    if _limited(told):
        raise RuntimeError(f"the attack ran into a limit of calls: {told}")
    return told


def _flood(target: _Target) -> int:
    """How many of ``FLOOD`` of the 13 bytes' uploads were looked at, and not refused for coming too often."""
    return sum(not _limited(_send(target, TENSEAL_BLOB)) for _ in range(FLOOD))


def _send(target: _Target, data: bytes, *, squeezed: bool = False) -> str:
    """One message of an upload; what was said to it."""
    site = target.sites[0]
    channel = grpc.secure_channel(
        target.service.address,
        site.member.channel_credentials(),
        options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
    )
    upload: Any = channel.stream_unary(
        "/cipherward.v1.Coordinator/Upload", response_deserializer=pb.UploadState.FromString
    )
    messages = [
        _header(target, site).SerializeToString(),
        pb.UploadMessage(index=0, data=data, leaf_hash=bytes(32)).SerializeToString(),
    ]
    squeeze = grpc.Compression.Gzip if squeezed else grpc.Compression.NoCompression
    with channel:
        try:
            upload(iter(messages), timeout=60, compression=squeeze)
        except grpc.RpcError as error:
            return str(error)
    return ""


def _blobs() -> dict[str, bytes]:
    expanding = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
    return {
        "the 13 bytes that crash TenSEAL": TENSEAL_BLOB,
        "a ciphertext that expands to 256 MiB": expanding,
        "nothing": b"",
    }


def _crash() -> Case:
    """Control in a process of its own: TenSEAL's parser, as any aggregator that uses it has it."""
    done = subprocess.run([sys.executable, "-c", _VICTIM], capture_output=True, check=False)  # noqa: S603
    return Case(
        "the 13 bytes that crash TenSEAL's own parser",
        control=f"the process that parsed them ended with signal {-done.returncode}"
        if done.returncode < 0
        else f"exit status {done.returncode}",
        control_worked=done.returncode < 0,
        defended="",
        held=False,
    )


def _expand(blob: bytes) -> int:
    """Control: bytes that a receiver without a bound would hold."""
    return len(zstandard.ZstdDecompressor().decompress(blob, max_output_size=2**30))


def _swamped(target: _Target, seed: int, attempt: int) -> float | None:
    """Seconds until a fast site's upload is stored beside ``SLOW`` that send nothing more; None if it is not."""
    stop = threading.Event()

    def trickle(site: MadeUpSite) -> Iterator[pb.UploadMessage]:
        yield _header(target, site, attempt)
        stop.wait(60)

    slow = [site.stub.Upload.future(trickle(site), timeout=60) for site in target.sites[:SLOW]]
    time.sleep(1.0)
    fast = target.sites[SLOW]
    vector = vectors([fast.name], fast.length, seed)[fast.name]
    made = fast.encrypt(1, target.plan, vector, attempt)
    start = time.monotonic()
    try:
        fast.call("Upload", made.messages(fast.study), WAIT_SECONDS)
        return time.monotonic() - start
    except CipherwardError:
        return None
    finally:
        stop.set()
        for one in slow:
            one.cancel()


def run(context: Context) -> Result:
    """Blobs, sizes, compression, slowness."""
    large = (128 if context.fast else 512) * MIB
    cases: list[Case] = []
    defended: dict[str, Figure] = {}
    control: dict[str, Figure] = {}
    sizes = {
        f"a message of {large // MIB} MiB": (large, False),
        f"a message of {large // MIB} MiB, compressed by gRPC to a thousandth": (large, True),
    }
    grown: dict[str, int] = {}
    context.note("without limits on messages")
    with _target(context.folder / "off", 3, "no-rates", "no-message-limit") as service:
        target = _planned(service)
        for name, (size, squeezed) in sizes.items():
            with PeakMemory(service.pid) as memory:
                _send(target, bytes(size), squeezed=squeezed)
            grown[name] = memory.extra
        unlimited = _flood(target)
    context.note("as shipped")
    with _target(context.folder / "on", 3) as service:
        target = _planned(service)
        start = peak_bytes(service.pid)
        crash = _crash()
        for name, blob in _blobs().items():
            told = _looked_at(_send(target, blob))
            if name.startswith("the 13"):
                worked, what = crash.control_worked, crash.control
            elif blob:
                expanded = _expand(blob)
                worked, what = expanded >= 2**28, f"{len(blob)} bytes became {expanded // MIB} MiB"
            else:
                continue
            held = bool(told) and service.alive()
            cases.append(Case(name, what, worked, _line(told), held))
        for name, (size, squeezed) in sizes.items():
            with PeakMemory(service.pid) as memory:
                told = _looked_at(_send(target, bytes(size), squeezed=squeezed))
            growth = memory.extra
            cases.append(
                Case(
                    name,
                    control=f"the coordinator's memory grew by {grown[name] // MIB} MiB",
                    control_worked=grown[name] >= size // 2,
                    defended=f"{_line(told)}; it grew by {growth // MIB} MiB",
                    held=bool(told) and growth < MEMORY_LIMIT and service.alive(),
                )
            )
        begun = time.monotonic()
        looked_at = _flood(target)
        # As the table of limits has it: a burst, and then so many a second.
        policy = POLICIES["Upload"]
        allowed = policy.burst + policy.per_second * (time.monotonic() - begun) + 1
        other = target.sites[1]
        other.contribute(1, vectors([other.name], other.length, context.seed)[other.name])
        cases.append(
            Case(
                f"{FLOOD} uploads of the 13 bytes, one behind the other",
                control=f"without limits of calls {unlimited} are looked at",
                control_worked=unlimited == FLOOD,
                defended=f"{looked_at} are looked at, the rest is refused unseen; another site's update is committed",
                held=looked_at < FLOOD and looked_at <= allowed and service.alive(),
            )
        )
        defended["memory grown in all, MiB"] = target.growth(start) // MIB
    control["memory grown, MiB"] = max(grown.values()) // MIB
    context.note("slow uploads")
    with _target(context.folder / "slow", SLOW + 1, "endless-patience") as service:
        target = _planned(service)
        without = _swamped(target, context.seed, 1)
        service.restart()
        within = _swamped(target, context.seed, 2)
    cases.append(
        Case(
            f"{SLOW} uploads that send nothing more",
            control="another site's upload is not taken" if without is None else f"it took {without:.1f} s",
            control_worked=without is None,
            defended="not taken" if within is None else f"another site's upload is stored in {within:.1f} s",
            held=within is not None,
        )
    )
    return Result.of_cases(
        cases,
        f"{sum(case.held for case in cases)} of {len(cases)} bombs left the coordinator up with bounded memory "
        f"({defended['memory grown in all, MiB']} MiB more in all); without its limits one message took "
        f"{control['memory grown, MiB']} MiB.",
        control=control,
        defended=defended,
        notes=("Limits on how often a site may call are lifted in the control only.",),
    )


def _line(told: str) -> str:
    for line in told.splitlines():
        if "details" in line:
            return line.strip()[:160]
    return told[:160] or "taken"


ROW = Row(
    id="T14",
    title="parser bombs and slow uploads",
    adversary="A site with a valid certificate that wants to stop or swamp the coordinator.",
    holds="Its own keys; blobs that crash or swell in common parsers.",
    source="Found by fuzzing TenSEAL 0.3.16 (13 bytes, null pointer); decompression bombs; slow-loris uploads.",
    metric="whether the same process still serves, and how much its memory grew",
    passes=f"everything is refused, the memory grows by less than {MEMORY_LIMIT // MIB} MiB, and a site that is not "
    f"slow uploads within {WAIT_SECONDS:.0f} s",
    seeds=(14,),
    fast_seconds=40,
    full_seconds=60,
    run=run,
)
