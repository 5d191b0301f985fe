"""Files in the MedMNIST format: what is read of them, and that a hostile one is refused in one line, in bounded memory,
with nothing of it run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cipherward.errors import CipherwardError, EnvironmentProblem, UsageError
from cipherward.site_agent.tasks.medmnist import images, ready_features
from cipherward.site_agent.tasks.medmnist.extractor import VERSION
from cipherward.site_agent.tasks.medmnist.npz import opened

ALL = ("train", "val", "test")


def arrays(n: int = 12, size: int = 28, *, colour: bool = False, seed: int = 0) -> dict[str, Any]:
    """Different pictures in three parts, labels 0 and 1."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for part in ALL:
        shape = (n, size, size, 3) if colour else (n, size, size)
        found[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        found[f"{part}_labels"] = (np.arange(n, dtype=np.uint8) % 2)[:, None]
    return found


def features(n: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {"extractor": np.array(VERSION)}
    for part in ALL:
        values = rng.normal(size=(n, 1280)).astype(np.float32)
        found[f"{part}_features"] = values / np.linalg.norm(values, axis=1, keepdims=True)
        found[f"{part}_labels"] = np.arange(n) % 2
        found[f"{part}_patients"] = np.array([f"{part}-{row}" for row in range(n)])
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some images.npz"  # a space in the path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_what_numpy_saved_is_read(path: Path, compressed: bool, colour: bool) -> None:
    saved = arrays(colour=colour)
    (np.savez_compressed if compressed else np.savez)(path, **saved)
    for part in ALL:
        table = images(str(path), (part,))
        original = saved[f"{part}_images"]
        expected = np.moveaxis(original, 3, 1) if colour else np.repeat(original[:, None], 3, axis=1)
        assert np.array_equal(table.values, expected)
        assert table.labels.tolist() == saved[f"{part}_labels"].ravel().tolist()
    together = images(str(path), ALL)
    assert np.array_equal(together.values, np.concatenate([images(str(path), (one,)).values for one in ALL]))


def test_blocks_are_the_array(path: Path) -> None:
    many = np.arange(20 * 2**20, dtype=np.uint32).astype(np.uint8).reshape(-1, 16, 16)
    np.savez(path, train_images=many)
    with opened(path, frozenset({"train_images"})) as archive:
        blocks = list(archive.blocks("train_images"))
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate(blocks), many)


@pytest.mark.parametrize("size", [29, 56, 64, 224])
def test_larger_images_are_averaged_over_areas(path: Path, size: int) -> None:
    saved = arrays(3, size)
    saved["train_images"][0] = 200
    np.savez(path, **saved)
    values = images(str(path), ("train",)).values
    assert values.shape == (3, 3, 28, 28)
    assert (values[0] == 200).all()
    if size == 56:
        means = saved["train_images"][1].reshape(28, 2, 28, 2).mean(axis=(1, 3))
        assert np.abs(values[1, 0] - means).max() <= 0.5
    few = images(f"{path}?site=1&of=2", ("train",)).values  # blocks of which little or nothing is chosen
    assert few.shape[1:] == (3, 28, 28)


def test_patients_are_those_named(path: Path) -> None:
    saved = arrays(4)
    for part, ids in (("train", [" p1", "p2 ", "p1", "p3"]), ("val", ["p4"] * 4), ("test", ["p5"] * 4)):
        saved[f"{part}_patients"] = np.array(ids)
    np.savez(path, **saved)
    assert images(str(path), ("train",)).patients == ("p1", "p2", "p1", "p3")


@pytest.mark.parametrize("ids", [np.array([7, 7, 8, 9]), np.array([b"7", b"7", b"8", b"9"])])
def test_patients_are_numbers_or_text(path: Path, ids: Any) -> None:
    saved = arrays(4)
    saved |= {"train_patients": ids, "val_patients": ids + 10 if ids.dtype.kind == "i" else ids}
    saved["test_patients"] = saved["val_patients"]
    np.savez(path, **saved)
    assert images(str(path), ("train",)).patients == ("7", "7", "8", "9")


def test_without_ids_a_picture_is_a_patient_wherever_it_is(tmp_path: Path) -> None:
    saved = arrays(5)
    saved["train_images"][4] = saved["train_images"][0]
    np.savez(tmp_path / "a.npz", **saved)
    ids = images(str(tmp_path / "a.npz"), ("train",)).patients
    assert ids[0] == ids[4]
    assert len(set(ids)) == 4
    # Another file, in another order, without one of them: the same patients, so that the ledger knows them again.
    other = {name: value[::-1][:4] for name, value in saved.items()}
    np.savez_compressed(tmp_path / "b.npz", **other)
    assert set(images(str(tmp_path / "b.npz"), ("train",)).patients) <= set(ids)


def test_a_training_patient_is_in_no_other_part(path: Path) -> None:
    saved = arrays(4)
    saved["test_images"][1] = saved["train_images"][2]
    saved["val_images"][0] = saved["train_images"][0]
    saved["val_images"][3] = saved["test_images"][3]
    np.savez(path, **saved)
    parts = {part: set(images(str(path), (part,)).patients) for part in ALL}
    assert [len(parts[part]) for part in ALL] == [4, 2, 3]
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & (parts["train"] | parts["test"])


def test_val_and_test_may_be_missing(path: Path) -> None:
    np.savez(path, **{name: value for name, value in arrays().items() if name.startswith("train")})
    assert len(images(str(path), ALL).labels) == 12
    empty = images(str(path), ("test",))
    assert empty.values.shape == (0, 3, 28, 28)
    assert not empty.patients


def test_features_are_read(path: Path) -> None:
    saved = features()
    np.savez(path, **saved)
    table = ready_features(str(path), ("train", "test"), classes=2)
    assert np.array_equal(table.values, np.concatenate([saved["train_features"], saved["test_features"]]))
    assert table.patients[:2] == ("train-0", "train-1")


IMAGES = [
    ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "3D files have no task"),
    ({"train_images": np.zeros((12, 28, 29), np.uint8)}, "shape"),
    ({"train_images": np.zeros((12, 28, 28, 4), np.uint8)}, "shape"),
    ({"train_images": np.zeros((12, 27, 27), np.uint8)}, "27 pixels"),
    ({"train_images": np.zeros((12, 225, 225), np.uint8)}, "225 pixels"),
    ({"train_images": np.zeros((12, 28, 28))}, "float64.*uint8"),
    ({"train_images": np.zeros((12, 28, 28), np.int8)}, "int8"),
    ({"train_images": np.zeros((12, 64, 64), np.uint8)}, "different shapes"),
    ({"train_images": np.asfortranarray(np.zeros((12, 28, 28), np.uint8))}, "Fortran"),
    ({"train_images": np.zeros((11, 28, 28), np.uint8)}, "differ in length"),
    ({"train_images": np.zeros(12, np.uint8)}, "shape"),
    ({"train_images": np.uint8(3)}, "shape"),
    ({"train_images": None}, "objects"),
    ({"train_labels": np.zeros((12, 14), np.uint8)}, "Several labels a record.*ChestMNIST"),
    ({"train_labels": np.full(12, 16)}, "outside 0 to 15"),
    ({"train_labels": np.full(12, -1)}, "outside 0 to 15"),
    ({"train_labels": np.full(12, 2**64 - 1, np.uint64)}, "outside 0 to 15"),
    ({"train_labels": np.zeros(12)}, "float64"),
    ({"train_labels": np.array(["0"] * 12)}, "<U1"),
    ({"train_labels": np.array([{"a": 1}] * 12)}, "objects"),
    ({"train_labels": np.zeros(12, [("a", "u1")])}, "objects or records"),
    ({"train_labels": np.zeros(13, np.uint8)}, "differ in length"),
    ({"train_patients": np.arange(12)}, "some have none"),
    ({f"{part}_patients": np.array(["p"] * 11 + [" "]) for part in ALL}, "empty value"),
    ({f"{part}_patients": np.array([b"\xff"] * 12) for part in ALL}, "no text"),
    ({f"{part}_patients": np.full(12, 0x110000, np.uint32).view("<U1") for part in ALL}, "no text"),
    ({f"{part}_patients": np.full(12, 0x110000, ">u4").view(">U1") for part in ALL}, "no text"),
    ({f"{part}_patients": np.array(["\ud800"] * 12) for part in ALL}, "no text"),
    ({f"{part}_patients": np.zeros(12) for part in ALL}, "float64"),
    ({f"{part}_patients": np.zeros((12, 2), np.int64) for part in ALL}, "one text a record"),
    ({f"{part}_patients": np.array(["p" * 300] * 12) for part in ALL}, "text of 300"),
]


@pytest.mark.parametrize(("change", "problem"), IMAGES)
def test_malformed_images_are_explained(path: Path, change: dict[str, Any], problem: str) -> None:
    np.savez(path, **{**arrays(), **change})
    with pytest.raises(UsageError, match=problem) as caught:
        images(str(path), ALL)
    assert str(caught.value).isprintable()


def test_one_record_with_several_ids_is_explained(path: Path) -> None:
    one = {"train_images": np.zeros((1, 28, 28), np.uint8), "train_labels": np.zeros(1, np.uint8)}
    np.savez(path, train_patients=np.array([["a", "b", "c"]]), **one)
    with pytest.raises(UsageError, match="one text a record"):
        images(str(path), ("train",))


def nan(row: int, column: int) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = features()["train_features"]
    values[row, column] = np.nan
    return values


FEATURE_CHANGES = [
    ({"train_features": nan(5, 1279)}, "norm 1"),
    ({"train_features": np.full((6, 1280), np.inf, np.float32)}, "norm 1"),
    ({"train_features": np.full((6, 1280), 3e38, np.float32)}, "norm 1"),
    ({"train_features": 2 * features()["train_features"]}, "norm 1"),
    ({"train_features": np.zeros((6, 1279), np.float32)}, r"float32 of shape \(n, 1280\)"),
    ({"train_features": np.zeros((6, 1280))}, "float64"),
    ({"extractor": np.array("mine")}, "another extractor.*medmnist.prepare"),
    ({"extractor": np.array([VERSION])}, "another extractor"),
    ({"extractor": np.array(3)}, "another extractor"),
    ({"train_labels": np.full(6, 2)}, "outside 0 to 1"),
]


@pytest.mark.parametrize(("change", "problem"), FEATURE_CHANGES)
def test_malformed_features_are_explained(path: Path, change: dict[str, Any], problem: str) -> None:
    np.savez(path, **{**features(), **change})
    with pytest.raises(UsageError, match=problem):
        ready_features(str(path), ("train",), classes=2)


def test_a_task_says_which_kind_of_file_it_wants(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", **arrays())
    np.savez(tmp_path / "features.npz", **features())
    with pytest.raises(UsageError, match=r"medmnist.prepare IMAGES.npz FEATURES.npz"):
        ready_features(str(tmp_path / "images.npz"), ("train",))
    with pytest.raises(UsageError, match="this task takes images"):
        images(str(tmp_path / "features.npz"), ("train",))
    for missing in ("extractor", "train_features", "test_labels"):
        np.savez(tmp_path / "less.npz", **{name: one for name, one in features().items() if name != missing})
        with pytest.raises(UsageError, match="cannot use"):
            ready_features(str(tmp_path / "less.npz"), ("train",))


# Files that numpy would not have written


def npy(shape: str, descr: str = "'|u1'", data: bytes = b"", order: str = "False") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def pickled() -> bytes:
    return npy("(12,)", "'|O'", pickle.dumps(np.array([Evil()] * 12, object)))


GOOD_LABELS = ("train_labels.npy", npy("(12,)", data=bytes(12)))
GOOD_IMAGES = ("train_images.npy", npy("(12, 28, 28)", data=bytes(12 * 784)))
HOSTILE = {
    "nothing": b"",
    "a picture": b"\x89PNG\r\n" + bytes(100),
    "a plain npy": npy("(12,)", data=bytes(12)),
    "a pickle": pickle.dumps(Evil()),
    "objects as images": zipped([("train_images.npy", pickled()), GOOD_LABELS]),
    "objects as labels": zipped([GOOD_IMAGES, ("train_labels.npy", pickled())]),
    "declares more than there is": zipped([("train_images.npy", npy("(500000, 28, 28)")), GOOD_LABELS]),
    "declares the universe": zipped([("train_images.npy", npy("(999999999999, 999999999999, 3)")), GOOD_LABELS]),
    "negative": zipped([("train_images.npy", npy("(-1, 28, 28)")), GOOD_LABELS]),
    "code in the header": zipped([("train_images.npy", npy("__import__('os').mkdir('run')")), GOOD_LABELS]),
    "nested header": zipped([("train_images.npy", npy("(" * 60 + ")" * 60)), GOOD_LABELS]),
    "an unknown type": zipped([("train_images.npy", npy("(12, 28, 28)", "'|u3'", bytes(12 * 784 * 3))), GOOD_LABELS]),
    "a type without size": zipped([GOOD_IMAGES, ("train_labels.npy", npy("(12,)", "'<U0'"))]),
    "bzip2": zipped([GOOD_IMAGES, GOOD_LABELS], zipfile.ZIP_BZIP2),
    "version 3": zipped([("train_images.npy", b"\x93NUMPY\x03\x00" + bytes(200)), GOOD_LABELS]),
    "cut": zipped([GOOD_IMAGES, GOOD_LABELS])[:-30],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UsageError, match="cannot use") as caught:
        images(str(path), ALL)
    assert str(caught.value).isprintable()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_baseline_of_the_hostile_files_is_read(path: Path) -> None:
    path.write_bytes(zipped([GOOD_IMAGES, GOOD_LABELS, ("anything.npy", pickled()), ("a.txt", b"notes")]))
    assert len(images(str(path), ALL).labels) == 12


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(path: Path) -> None:
    path.write_bytes(zipped([GOOD_IMAGES, GOOD_LABELS, GOOD_LABELS]))
    with pytest.raises(UsageError, match="two arrays train_labels"):
        images(str(path), ALL)


def test_a_flipped_bit_of_an_image_is_seen(path: Path) -> None:
    content = bytearray(zipped([GOOD_IMAGES, GOOD_LABELS], zipfile.ZIP_STORED))
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        images(str(path), ALL)


def test_an_encrypted_member_is_refused(path: Path) -> None:
    content = bytearray(zipped([GOOD_IMAGES, GOOD_LABELS]))
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="encrypted"):
        images(str(path), ALL)


def bomb(path: Path, rows: int, declared: int) -> None:
    """Zeros: 224 x 224 a row, a thousandth of it on the disk."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(*GOOD_LABELS)
        with archive.open("train_images.npy", "w") as stream:
            stream.write(npy(f"({declared}, 224, 224)"))
            for _ in range(rows // 10):
                stream.write(bytes(10 * 224 * 224))


def test_a_bomb_is_refused_by_what_it_declares(path: Path) -> None:
    bomb(path, 1500, 1500)  # 75 MB out of 0.07
    with pytest.raises(UsageError, match=r"would unpack to 75264\d+ bytes from \d{5}\. "):
        images(str(path), ALL)


def test_a_bomb_that_declares_less_than_it_has_ends_there(path: Path) -> None:
    bomb(path, 1500, 12)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 12 * 224 * 224 + 128)
    path.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        images(str(path), ALL)


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    """6,000 images of 224 x 224 are 300 MB; as the network takes them they are 14."""
    path = tmp_path / "large.npz"
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, 2**17 + 224 * 224, dtype=np.uint8)
    rows = 3000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_labels.npy", npy(f"({rows},)", data=bytes(rows)))
        with archive.open("train_images.npy", "w", force_zip64=True) as stream:
            stream.write(npy(f"({rows}, 224, 224)"))
            for row in range(rows):
                stream.write(pool[row : row + 224 * 224].tobytes())
    code = (
        "import resource, sys, torch\n"
        "from cipherward.site_agent.tasks.medmnist import images\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = len(images(sys.argv[1], ('train',)).patients)\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    n, kilobytes = map(int, done.stdout.split())
    assert n == rows
    assert kilobytes < 110_000, "150 MB of images were held at once"


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_opened(path: Path, make: Any) -> None:
    make(path)
    with pytest.raises(CipherwardError) as caught:
        images(str(path), ALL)
    assert isinstance(caught.value, EnvironmentProblem | UsageError)
