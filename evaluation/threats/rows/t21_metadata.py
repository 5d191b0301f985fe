"""Everything that leaves a hospital in clear, and everything that a real coordinator kept, against the allow-list."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool

from cipherward.coordinator.audit.source import Source
from cipherward.evaluation.threats.attacks import census
from cipherward.evaluation.threats.attacks.metadata_fields import LOGGED, STORED, WIRE, allowed
from cipherward.evaluation.threats.kit.hospital import NAMES, STUDY
from cipherward.evaluation.threats.kit.real_study import RealStudy
from cipherward.evaluation.threats.row import Case, Context, Result, Row
from cipherward.proto.v1 import common_pb2, round_pb2
from cipherward.site_agent.state.folder import SiteFolder
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.heart_disease.data import rows

_ROUNDS = 2
_LIMIT = 1e-6
"""Chance at which bytes count as not uniform."""


def _listed(found: Iterable[str]) -> str:
    return ", ".join(sorted(found)) or "none"


def _case(name: str, control: Iterable[str], found: Iterable[str], total: int) -> Case:
    """``control``, ``found``: what the census names that the allow-list does not have."""
    control, found = set(control), set(found)
    return Case(
        name,
        f"named: {_listed(control)}",
        bool(control),
        f"{total} fields, not allowed: {_listed(found)}",
        total > 0 and not found,
    )


def _wire() -> Case:
    """The control is a commit that tells the mean age of the hospital's patients."""
    changed = descriptor_pb2.FileDescriptorProto()
    round_pb2.DESCRIPTOR.CopyToProto(changed)
    commit = next(message for message in changed.message_type if message.name == "Commit")
    field = descriptor_pb2.FieldDescriptorProto
    commit.field.add(name="mean_age", number=99, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(common_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(changed)
    with_field = census.leaving_sites(records=pool.FindFileByName(changed.name))
    found, permitted = census.leaving_sites(), allowed(WIRE)
    # A field that is allowed and gone is no leak, but then the list is wrong.
    return _case("fields that leave a site", with_field - permitted, found ^ permitted, len(found))


def _database(coordinator: Path, copy: Path) -> Case:
    [path] = coordinator.glob("*.db")
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("ALTER TABLE posts ADD COLUMN patients INTEGER")
    found, permitted = census.stored(path), allowed(STORED)
    return _case(
        "what the coordinator stored", census.stored(copy) - permitted, found - permitted, len(found)
    )


def _log(text: str) -> Case:
    found, permitted = census.logged(text.splitlines()), allowed(LOGGED)
    more = census.logged([*text.splitlines(), '{"event": "joined", "patients": 203}'])
    return _case("what the coordinator logged", more - permitted, found - permitted, len(found))


def _sizes(uploads: dict[str, list[bytes]]) -> Case:
    """The control is what a hospital's own rows would take, compressed: sizes that tell how many patients there are."""
    sizes = {name: sum(map(len, chunks)) for name, chunks in uploads.items()}
    told = {
        name: len(zlib.compress("".join(map(str, rows(f"builtin:{name}", Split.TRAIN))).encode()))
        for name in NAMES
    }
    return Case(
        "sizes of uploads",
        f"records compressed: {_listed(map(str, told.values()))} bytes",
        len(set(told.values())) == len(told),
        f"ciphertexts: {_listed(set(map(str, sizes.values())))} bytes at every hospital",
        len(set(sizes.values())) == 1 and min(sizes.values()) > 0 and len(sizes) == len(NAMES),
    )


def _models(study: RealStudy) -> Case:
    """Two neighbouring weights of every model that any hospital has, sought in every byte that the coordinator kept;
    the control is the same search when one model lies among that, in one place, as the state of a study might."""
    needles: set[bytes] = set()
    planted = b""
    for name in NAMES:
        folder = SiteFolder(study.world.consortium.site_folder(name))
        for path in folder.models.glob("*.f32"):
            content = path.read_bytes()
            pairs = {content[start : start + 8] for start in range(0, len(content) - 8, 4)}
            trained = {pair for pair in pairs if 0.0 not in struct.unpack("<2f", pair)}
            needles |= trained
            planted = content if trained else planted
    kept = [path.read_bytes() for path in study.world.consortium.coordinator.rglob("*") if path.is_file()]
    kept.append(study.log("coordinator").encode())

    def seen_in(contents: list[bytes]) -> int:
        return sum(needle in content for needle in needles for content in contents)

    seen, told = seen_in(kept), seen_in([*kept[:-1], kept[-1] + planted])
    return Case(
        "models in clear",
        f"with one model behind the log's end: {told}",
        told > 10 and len(needles) > 20,
        f"of {len(needles)} pairs of weights in {sum(map(len, kept))} bytes that the coordinator kept: {seen}",
        seen == 0,
    )


def _chance(content: bytes) -> float:
    """That uniform bytes are as uneven as these (chi-squared)."""
    from scipy.stats import chisquare

    counts = np.bincount(np.frombuffer(content, dtype=np.uint8), minlength=256)
    return float(chisquare(counts).pvalue)


def _unevenness(count: int) -> float:
    """The mean departure of the bytes' frequencies from even, relative and squared, that ``_chance`` puts below the
    limit nine times in ten, for ``count`` bytes; its square root."""
    from scipy.optimize import brentq
    from scipy.stats import chi2, ncx2

    at = float(chi2.isf(_LIMIT, 255))
    return float((brentq(lambda shift: ncx2.sf(at, 255, shift) - 0.9, 1.0, 1e4) / count) ** 0.5)


def _evenness(uploads: dict[str, list[bytes]], study: RealStudy) -> Case:
    """The control is the model as it would travel without encryption, again and again."""
    folder = SiteFolder(study.world.consortium.site_folder(NAMES[0]))
    clear = b"".join(path.read_bytes() for path in folder.models.glob("*.f32")) * 100
    cipher = b"".join(chunk for chunks in uploads.values() for chunk in chunks)
    off, on = _chance(clear), _chance(cipher)
    return Case(
        "bytes of uploads",
        f"in clear as uneven by chance once in {1 / max(off, 1e-300):.3g}",
        off < _LIMIT,
        f"{len(cipher)} bytes as uneven by chance with probability {on:.3f}; frequencies "
        f"{_unevenness(len(cipher)):.1%} off on average would show",
        on > _LIMIT,
    )


def run(context: Context) -> Result:
    """The wire format, and then a real study's coordinator."""
    cases = [_wire()]
    with RealStudy(context.folder / "study", _ROUNDS) as study:
        context.note("a study of four hospitals in real processes")
        study.start()
        study.to_the_end()
        log = study.log("coordinator")
    coordinator = study.world.consortium.coordinator
    source = Source(coordinator)
    uploads: dict[str, list[bytes]] = {name: [] for name in NAMES}
    for number in range(1, _ROUNDS + 1):
        for (site, _), kept in source.round(STUDY, number).updates.items():
            uploads[site] += source.chunks(kept, 2**20)
    cases += [
        _database(coordinator, context.folder / "copy.db"),
        _log(log),
        _sizes(uploads),
        _evenness(uploads, study),
        _models(study),
    ]
    fields = len(allowed(WIRE))
    return Result.of_cases(
        cases,
        f"{fields} fields can leave a hospital, each on the documented list; what a real coordinator stored and logged "
        "of a study is on it too, no weight of any model is in it, and uploads have one size at every hospital.",
        defended={"fields that may leave a site": fields, "rounds": _ROUNDS, "hospitals": len(NAMES)},
        notes=[
            "Residual risk: the coordinator sees who takes part when. How long a hospital takes to join a round is its "
            "training time, which grows with its patients and with other load; it is not hidden.",
            "The network sees addresses, times and sizes, as with any TLS connection.",
        ],
    )


ROW = Row(
    id="T21",
    title="Metadata: what leaves a site in clear",
    adversary="The coordinator, and whoever reads its disk, database and logs",
    holds="Everything that a real coordinator process stored and logged of a study of four hospitals",
    source="Our own census: the wire format's descriptors, the database's schema, the log's lines (docs/metadata.md)",
    metric="Fields, columns and log keys that are not on the documented list; sizes by hospital; weights in clear",
    passes="None is off the list, and a field, column or key that is added is named; uploads have one size; no weight "
    "is found; ciphertext bytes are uniform (chi-squared, one in a million)",
    seeds=(21,),
    fast_seconds=40,
    full_seconds=40,
    run=run,
)
