"""A MedMNIST file, or one of features made from it: arrays ``{train,val,test}_{images,labels}`` (or ``_features``),
and optionally ``_patients`` and ``_sites``, one value a record. Types, shapes and ranges are checked before use.

A patient is in one part only. Who has a record in train is a training patient, and that patient's records in test or
val are left out; likewise val leaves out the patients of test. In a file without ids each image is a patient of its
own, known by a digest of its pixels: the same picture twice is one patient, in whatever file it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.errors import UsageError
from cipherward.site_agent.tasks.medmnist.npz import Archive, opened
from cipherward.site_agent.tasks.medmnist.sites import Choice, Column, Whole, column_of
from cipherward.site_agent.tasks.medmnist.source import Source

PARTS = ("train", "test", "val")
"""By precedence: a patient belongs to the first that has a record of them."""
MAX_RECORDS = 2**19
"""In one part; TissueMNIST has 165,466."""
SIZES = (28, 224)
FEATURES = 1280
CLASSES = 16
_COLUMNS = ("images", "features", "labels", "patients", "sites")
WANTED = frozenset({"extractor", *(f"{part}_{column}" for part in PARTS for column in _COLUMNS)})
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The chosen records of one part. ``values``: (n, size, size) or (n, size, size, 3) uint8, or what ``shrink``
    made of it, or (n, FEATURES) float32. ``labels``: (n,) int64. ``patients``: n ids."""

    values: Values = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Index:
    """All of a part but its values, each of n."""

    labels: NDArray[np.int64] = field(repr=False)
    patients: list[str] = field(repr=False)
    sites: list[str] | None = field(repr=False)


def read(
    source: Source,
    parts: tuple[str, ...],
    *,
    kind: str,
    classes: int = CLASSES,
    shrink: Callable[[Values], Values] | None = None,
    extractor: str = "",
) -> Table:
    """The records of ``parts`` that the source chooses, in the order of ``parts`` and then of the file.

    ``kind``: ``images`` or ``features``; ``extractor``: what features must come from. ``shrink`` is given images in
    blocks. Raises EnvironmentProblem if the file cannot be read, UsageError if it is malformed, is of the other
    kind, or has labels outside 0..classes - 1.
    """
    with opened(source.path(), WANTED) as archive:
        check(archive, kind, extractor)
        indices = {part: index(archive, part, kind, classes) for part in present(archive, kind)}
        rows = _chosen(indices, source.choice)
        found = [part for part in parts if part in indices]
        values = [
            block if shrink is None else shrink(block)
            for part in found
            for block in _rows(archive, f"{part}_{kind}", rows[part])
        ]
        labels = [indices[part].labels[rows[part]] for part in found]
        patients = [indices[part].patients[row] for part in found for row in rows[part]]
    return Table(
        np.concatenate(values) if values else np.zeros((0, 0), np.uint8 if kind == "images" else np.float32),
        np.concatenate([np.zeros(0, np.int64), *labels]),
        tuple(patients),
    )


def present(archive: Archive, kind: str) -> list[str]:
    """The parts that the file has, by precedence."""
    return [part for part in PARTS if f"{part}_{kind}" in archive.members]


def check(archive: Archive, kind: str, extractor: str = "") -> None:
    """That the file is of this kind, with arrays of the right types and shapes."""
    other = {"images": "features", "features": "images"}[kind]
    if not present(archive, kind):
        if present(archive, other) and kind == "features":
            raise archive.problem(
                "it has images, and this task takes features made from them",
                "Run: python -m cipherward.site_agent.tasks.medmnist.prepare IMAGES.npz FEATURES.npz",
            )
        if present(archive, other):
            raise archive.problem("it has features; this task takes images", "Give the file of the images")
    if f"train_{kind}" not in archive.members:
        raise archive.problem(f"it has no array train_{kind}", "See docs/imaging.md for the file's format")
    if kind == "features":
        _check_extractor(archive, extractor)
    shapes = set()
    for part in present(archive, kind):
        member = archive.members[f"{part}_{kind}"]
        (_check_images if kind == "images" else _check_features)(archive, part)
        if not member.shape[0] <= MAX_RECORDS:
            raise archive.problem(f"{part} has {member.shape[0]} records, more than {MAX_RECORDS}")
        for column in _COLUMNS[2:]:
            other_member = archive.members.get(f"{part}_{column}")
            if other_member is not None and other_member.shape[:1] != member.shape[:1]:
                raise archive.problem(f"{part}_{column} and {part}_{kind} differ in length")
        if f"{part}_labels" not in archive.members:
            raise archive.problem(f"it has no array {part}_labels")
        shapes.add(member.shape[1:])
    if len(shapes) > 1:
        raise archive.problem("its parts have images of different shapes")
    for column in ("patients", "sites"):
        have = [f"{part}_{column}" in archive.members for part in present(archive, kind)]
        if any(have) and not all(have):
            raise archive.problem(f"some of its parts have {column} and some have none")
    if kind == "features" and "train_patients" not in archive.members:
        raise archive.problem("its features have no patient ids", "Make it with ...medmnist.prepare")


def index(archive: Archive, part: str, kind: str, classes: int) -> Index:
    """Labels, ids and sites of a part that ``check`` has passed."""
    labels = _labels(archive, f"{part}_labels", classes)
    if f"{part}_patients" in archive.members:
        patients = _texts(archive, f"{part}_patients")
    else:
        patients = [
            "image-" + hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:32]
            for block in archive.blocks(f"{part}_{kind}")
            for image in block
        ]
    sites = _texts(archive, f"{part}_sites") if f"{part}_sites" in archive.members else None
    return Index(labels, patients, sites)


def _check_images(archive: Archive, part: str) -> None:
    member = archive.members[f"{part}_images"]
    square = len(member.shape) in (3, 4) and member.shape[1] == member.shape[2]
    if not square or (len(member.shape) == 4 and member.shape[3] != 3):
        raise archive.problem(
            f"{part}_images has the shape {member.shape}",
            "Images are (n, size, size) grey or (n, size, size, 3) colour; 3D files have no task here",
        )
    if member.dtype != np.uint8:
        raise archive.problem(f"{part}_images is {member.dtype}", "Pixels are uint8, 0 to 255")
    if not SIZES[0] <= member.shape[1] <= SIZES[1]:
        raise archive.problem(
            f"{part}_images has {member.shape[1]} pixels a side", f"Resize to {SIZES[0]} to {SIZES[1]}"
        )


def _check_features(archive: Archive, part: str) -> None:
    member = archive.members[f"{part}_features"]
    if member.dtype != np.dtype("<f4") or len(member.shape) != 2 or member.shape[1] != FEATURES:
        raise archive.problem(
            f"{part}_features is {member.dtype} of shape {member.shape}",
            f"Features are float32 of shape (n, {FEATURES})",
        )


def _check_extractor(archive: Archive, extractor: str) -> None:
    member = archive.members.get("extractor")
    if member is None or member.shape != () or _texts(archive, "extractor") != [extractor]:
        raise archive.problem(
            "its features were made by another extractor or version",
            "Run: python -m cipherward.site_agent.tasks.medmnist.prepare IMAGES.npz FEATURES.npz",
        )


def _labels(archive: Archive, name: str, classes: int) -> NDArray[np.int64]:
    member = archive.members[name]
    if len(member.shape) > 1 and member.shape[1:] != (1,):
        raise archive.problem(
            f"{name} has the shape {member.shape}",
            "Several labels a record are no task here (ChestMNIST has 14): keep one column",
        )
    if member.dtype.kind not in "bui" or not member.shape:
        raise archive.problem(f"{name} is {member.dtype}", "Labels are whole numbers")
    values = archive.whole(name).reshape(-1)
    if len(values) and not (values.min() >= 0 and values.max() < classes):
        raise archive.problem(f"{name} has labels outside 0 to {classes - 1}", "Number the classes from 0")
    return values.astype(np.int64)


def _texts(archive: Archive, name: str) -> list[str]:
    """Text or whole numbers as text, without blanks around it. The message must not quote a value."""
    member = archive.members[name]
    if member.dtype.kind not in "SUui" or any(one != 1 for one in member.shape[1:]):
        raise archive.problem(f"{name} is {member.dtype} of shape {member.shape}", "Use one text a record")
    values = archive.whole(name).reshape(-1)
    if (
        member.dtype.kind == "U"
        and (values.astype(member.dtype.newbyteorder("=")).view(np.uint32) > 0x10FFFF).any()
    ):
        raise archive.problem(f"{name} has a value that is no text")  # numpy would fail in its own way
    try:
        found = [(one.decode() if isinstance(one, bytes) else str(one)).strip() for one in values.tolist()]
        "".join(found).encode()  # refuses half characters, which no digest takes
    except ValueError as error:
        raise archive.problem(f"{name} has a value that is no text") from error
    if not all(found):
        raise archive.problem(f"{name} has an empty value", "Every record must name its patient and site")
    return found


def _chosen(indices: dict[str, Index], choice: Choice) -> dict[str, NDArray[np.int64]]:
    """The rows of each part that belong to the site, a patient in one part only."""
    part_of: dict[str, str] = {}
    label_of: dict[str, int] = {}
    for part, one in indices.items():
        for patient, label in zip(one.patients, one.labels.tolist(), strict=True):
            part_of.setdefault(patient, part)
            label_of[patient] = max(label, label_of.get(patient, 0))
    here = _members(indices, choice, label_of)
    rows = {
        part: np.array(
            [row for row, one in enumerate(found.patients) if part_of[one] == part and one in here], np.int64
        )
        for part, found in indices.items()
    }
    if not isinstance(choice, Whole) and not len(rows["train"]):
        raise UsageError(
            "the simulated site has nobody to train on", fix="Use fewer sites, another seed or a larger alpha"
        )
    return rows


def _members(indices: dict[str, Index], choice: Choice, label_of: dict[str, int]) -> set[str]:
    if isinstance(choice, Whole):
        return set(label_of)
    if not isinstance(choice, Column):
        return {patient for patient, label in label_of.items() if choice.has(patient, label)}
    named: dict[str, set[str]] = {}
    for one in indices.values():
        if one.sites is None:
            raise UsageError("split=column needs the arrays train_sites and so on", why="the file has none")
        for patient, site in zip(one.patients, one.sites, strict=True):
            named.setdefault(patient, set()).add(site)
    found = {patient for patient, site in column_of(named).items() if site == choice.site}
    if not found:
        sites = sorted({site for sites in named.values() for site in sites})
        raise UsageError(f"nobody is at the site {choice.site!r}", fix=f"Sites are: {', '.join(sites[:20])}")
    return found


def _rows(archive: Archive, name: str, rows: NDArray[np.int64]) -> Iterator[Values]:
    """These rows of an array, ascending, in blocks; at least one block, which may be empty."""
    start = 0
    for block in archive.blocks(name):
        first, last = np.searchsorted(rows, (start, start + len(block)))
        yield block[rows[first:last] - start]
        start += len(block)
    if not start:
        yield np.zeros((0, *archive.members[name].shape[1:]), archive.members[name].dtype)
