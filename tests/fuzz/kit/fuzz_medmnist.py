"""Files of images and of features, as somebody mailed them, and the text that names a source."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from fuzz_files import _folder
from fuzz_mutate import octets
from fuzz_target import target

from cipherward.site_agent.tasks.medmnist import images, ready_features
from cipherward.site_agent.tasks.medmnist.extractor import VERSION
from cipherward.site_agent.tasks.medmnist.source import parse

HEADERS = (
    *(
        b"'|O'",
        b"'<U1'",
        b"'<U0'",
        b"'|S257'",
        b"'>i8'",
        b"'<f4'",
        b"'|b1'",
        b"[('a', 'u1')]",
        b"'<U1000000000'",
    ),
    *(b"(2, 28, 28)", b"()", b"(0,)", b"(999999999999, 28, 28)", b"(2, 0, 0)", b"(-1,)", b"True", b"(2,)"),
)


def _saved(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def _images():
    pictures = np.arange(2 * 28 * 28, dtype=np.uint16).astype(np.uint8).reshape(2, 28, 28)
    plain = _saved(
        train_images=pictures, train_labels=np.array([[0], [1]]), test_images=pictures, test_labels=[1, 0]
    )
    named = {"train_patients": np.array(["a", "b"]), "train_sites": np.array(["x", "y"])}
    return [
        plain,
        _saved(train_images=np.stack([pictures] * 3, 3), train_labels=np.zeros(2, np.int8), **named),
    ]


def _features():
    values = np.zeros((2, 1280), np.float32)
    values[:, 3] = 1
    return [
        _saved(
            extractor=np.array(VERSION),
            train_features=values,
            train_labels=np.array([0, 1]),
            train_patients=np.array(["a", "b"]),
        )
    ]


def _mutate(data, rng):
    """Octets of the file; or of one array inside, packed again so that its checksum fits; or of its header."""
    how = rng.random()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(one.filename, archive.read(one)) for one in archive.infolist()]
    except Exception:
        members = []
    if how < 0.3 or not members:
        return octets(data, rng)
    at = rng.randrange(len(members))
    name, content = members[at]
    if how < 0.5:
        content = octets(content, rng)
    elif how < 0.8:
        quote = (b"'descr': ", b"'shape': ", b"'fortran_order': ")[rng.randrange(3)]
        start = content.find(quote) + len(quote)
        end = content.find(b", '" if quote != b"'shape': " else b", }", start)
        content = content[:start] + rng.choice(HEADERS) + content[max(start, end) :]
        size = int.from_bytes(content[8:10], "little")
        content = content[:8] + min(65535, max(0, size)).to_bytes(2, "little") + content[10:]
    elif how < 0.9:
        name = rng.choice(
            ("train_images.npy", "val_labels.npy", "train_patients.npy", "extractor.npy", "../x.npy")
        )
    else:
        del members[at]
        at = rng.randrange(len(members)) if members else 0
        name, content = members[at] if members else ("x", b"")
    members[at : at + 1] = [(name, content)]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for one, inside in dict(members).items():
            archive.writestr(one, inside)
    return out.getvalue()


@target("file of images", covers=["npz"], weight=8)
def _file_of_images():
    path = _folder("images") / "images.npz"

    def run(data):
        path.write_bytes(data)
        images(str(path), ("train", "val", "test"))
        images(f"{path}?site=1&of=2&split=label&alpha=0.5", ("train",))

    return run, _images(), _mutate


@target("file of features", covers=["npz"], weight=4)
def _file_of_features():
    path = _folder("features") / "features.npz"

    def run(data):
        path.write_bytes(data)
        ready_features(str(path), ("train", "val", "test"))

    return run, _features(), _mutate


@target("text of a source", weight=2)
def _source():
    seeds = [
        b"a b.npz?site=1&of=4&split=label&alpha=0.5&seed=3",
        b"medmnist:bloodmnist_64?split=column&site=St%20M",
    ]
    return lambda data: parse(data.decode(errors="surrogateescape")) and None, seeds, octets
