"""From answers to records in the shape of ``cipherward bench``, and from records to ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from peer_process import Answer
from peer_systems import System

from cipherward.evaluation.bench.records import Record

# Steps whose figure is a rate; "add" works on all sites' updates.
_RATES = ("encrypt", "encrypt_as_released", "encrypt_only", "serialise", "add", "add_only", "decrypt")
_PER_SITE = {"add", "add_only"}
_PLAIN_BYTES = 4.0


def records_of(
    system: System, parameters: int, threads: int, answers: Sequence[Answer], plain: Mapping[str, float]
) -> list[Record]:
    """The records of one system at one size.

    ``answers``: the first is the warm-up, whose memory counts and whose seconds don't; the medians of the rest
    do. ``plain``: parameters a second of the unencrypted equivalents, the baseline.
    """

    def record(figure: str, value: float, unit: str, baseline: float | None = None) -> Record:
        return Record(figure, value, unit, system.label, parameters, system.sites, threads, "cpu", baseline)

    warm, timed = answers[0], answers[1:]
    found = []
    for step in _RATES:
        if step in warm.seconds:
            seconds = statistics.median(answer.seconds[step] for answer in timed)
            values = parameters * (system.sites if step in _PER_SITE else 1)
            found.append(record(step, values / seconds, "params/s", plain.get(step)))
    if "share" in warm.seconds:
        found.append(record("share", statistics.median(answer.seconds["share"] for answer in timed), "s"))
    for direction, size in warm.bytes.items():
        found.append(record(f"bytes_{direction}", size / parameters, "B/param", _PLAIN_BYTES))
    for where, figure in (("client", "peak_memory"), ("server", "peak_memory_server")):
        if where in warm.peaks:
            found.append(record(figure, warm.peaks[where] / 1e6, "MB"))
    return found


def merged(*lists: Iterable[Record]) -> list[Record]:
    """All records; of several of the same figure, system, size, cohort, threads and device, the last."""
    found: dict[tuple[object, ...], Record] = {}
    for records in lists:
        for each in records:
            key = (each.figure, each.suite, each.params, each.sites, each.threads, each.device)
            found.pop(key, None)
            found[key] = each
    return list(found.values())


def _rate(records: Iterable[Record], suite: str, parameters: int, figure: str) -> float | None:
    for each in records:
        if (each.suite, each.params, each.figure, each.threads) == (suite, parameters, figure, 1):
            return each.value
    return None


def ratios(records: Sequence[Record], ours: Sequence[str], peers: Sequence[str]) -> list[str]:
    """Lines that say how many times as fast each of ``ours`` encrypts, in one thread, as each of ``peers``."""
    lines = []
    for parameters in sorted({each.params for each in records}):
        for suite in ours:
            own = _rate(records, suite, parameters, "encrypt")
            for peer in peers:
                their = _rate(records, peer, parameters, "encrypt")
                if own is None or their is None:
                    continue
                line = f"{parameters} parameters: {suite} encrypts {own / their:.1f} times as fast as {peer}"
                released = _rate(records, peer, parameters, "encrypt_as_released")
                if released is not None:
                    line += f" ({own / released:.1f} times, as released)"
                lines.append(line)
    return lines
