"""Simulated sites: a partition by patient that depends on nobody else, and sources that say what they mean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherward.errors import CipherwardError, EnvironmentProblem, UsageError
from cipherward.site_agent.tasks.medmnist import images
from cipherward.site_agent.tasks.medmnist.sites import Column, Even, LabelSkew, Whole
from cipherward.site_agent.tasks.medmnist.source import Source, parse

EVEN = ["patient 1", "patient 2", "patient 8", "patient 10"]
SKEWED = ["patient 0", "patient 1", "patient 2", "patient 6", "patient 9", "patient 10"]
QUICK = settings(deadline=None, max_examples=25)
PATIENTS = [f"patient {number}" for number in range(2000)]


def write(path: Path, patients: list[int], labels: list[int], **more: Any) -> Path:
    """Each record a picture of its own; a third of the patients are the test's."""
    found: dict[str, Any] = {}
    for part, mine in (("train", lambda one: one % 3), ("test", lambda one: not one % 3)):
        rows = [row for row, patient in enumerate(patients) if mine(patient)]
        found[f"{part}_images"] = np.zeros((len(rows), 28, 28), np.uint8)
        found[f"{part}_images"][:, 0, 0] = rows
        found[f"{part}_labels"] = np.array([labels[row] for row in rows], np.uint8)
        found[f"{part}_patients"] = np.array([f"p{patients[row]}" for row in rows], "<U8")
        for name, values in more.items():
            found[f"{part}_{name}"] = np.array([values[row] for row in rows], "<U8")
    np.savez(path, **found)
    return path


records = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=60)
skews = st.sampled_from(["split=iid", "split=label&alpha=0.2", "split=label&alpha=5"])


def at_sites(path: Path, of: int, split: str) -> list[dict[str, list[tuple[str, int, int]]]]:
    """What each of the sites gets of each part: patient, label, and which picture."""
    found = []
    for site in range(1, of + 1):
        one = {}
        for part in ("train", "test"):
            try:
                table = images(f"{path}?site={site}&of={of}&{split}", (part,))
            except UsageError as error:
                assert "nobody to train on" in str(error)
                one[part] = None
                continue
            one[part] = list(
                zip(table.patients, table.labels.tolist(), table.values[:, 0, 0, 0].tolist(), strict=True)
            )
        found.append(one)
    return found


@QUICK
@given(records, st.integers(1, 5), skews, st.integers(0, 3))
def test_sites_are_a_partition_by_patient_and_removing_one_moves_nobody(
    tmp_path_factory: pytest.TempPathFactory, them: list[tuple[int, int]], of: int, split: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("sites")
    patients, labels = [one for one, _ in them], [label for _, label in them]
    if all(one % 3 == 0 for one in patients):
        return
    path = write(folder / "all.npz", patients, labels)
    split += f"&seed={seed}"
    sites = at_sites(path, of, split)
    assert sites == at_sites(path, of, split)
    for part in ("train", "test"):
        whole = images(str(path), (part,))
        known = [one[part] for one in sites if one[part] is not None]
        rows = sorted(row for one in known for row in one)
        everything = sorted(
            zip(whole.patients, whole.labels.tolist(), whole.values[:, 0, 0, 0].tolist(), strict=True)
        )
        if len(known) == of:
            assert rows == everything
        seen = [{patient for patient, _, _ in one} for one in known]
        assert sum(map(len, seen)) == len(set().union(*seen)), "a patient is at two sites"
        assert set(rows) <= set(everything)
    # Without one of them.
    gone = patients[0]
    kept = [(one, label) for one, label in them if one != gone]
    if not any(one % 3 for one, _ in kept):
        return
    less = write(folder / "less.npz", [one for one, _ in kept], [label for _, label in kept])
    for before, after in zip(sites, at_sites(less, of, split), strict=True):
        for part in ("train", "test"):
            if before[part] is not None and after[part] is not None:
                without = [(patient, label) for patient, label, _ in before[part] if patient != f"p{gone}"]
                assert without == [(patient, label) for patient, label, _ in after[part]]


def counts(choice: Any, of: int, label: int, **more: Any) -> list[int]:
    return [sum(choice(site, of, **more).has(one, label) for one in PATIENTS) for site in range(1, of + 1)]


def test_an_even_split_is_even() -> None:
    found = counts(Even, 8, 0)
    assert sum(found) == len(PATIENTS)
    assert all(abs(one - 250) < 5 * (250 * 7 / 8) ** 0.5 for one in found)
    assert counts(Even, 8, 1) == found
    assert counts(Even, 8, 0, seed=1) != found


def test_a_small_alpha_makes_sites_differ_and_a_large_one_does_not() -> None:
    spread = {}
    for alpha in (0.05, 5.0, 1000.0):
        found = np.array([counts(LabelSkew, 8, label, alpha=alpha, seed=2) for label in (0, 1)])
        assert found.sum(axis=1).tolist() == [len(PATIENTS)] * 2
        spread[alpha] = float(np.abs(found[0] - found[1]).mean())
    assert spread[0.05] > 2 * spread[5.0] > 2 * spread[1000.0]


def test_shares_follow_the_dirichlet_distribution() -> None:
    """Of its first share: mean 1 / of, variance (of - 1) / (of^2 (of alpha + 1))."""
    from cipherward.site_agent.tasks.medmnist.sites import _ends

    of, alpha, draws = 4, 0.3, 3000
    shares = np.array([_ends(of, alpha, seed, 0)[0] for seed in range(draws)])
    variance = (of - 1) / (of**2 * (of * alpha + 1))
    assert abs(shares.mean() - 1 / of) < 5 * (variance / draws) ** 0.5
    assert abs(shares.var() / variance - 1) < 0.15
    tiny = np.array(_ends(32, 0.01, 0, 0))
    assert np.isfinite(tiny).all()
    assert tiny[-1] == pytest.approx(1)


def test_a_split_never_moves() -> None:
    """A changed one would put yesterday's training patients of one site into another."""
    assert [one for one in PATIENTS[:12] if Even(1, 3).has(one, 0)] == EVEN
    assert [one for one in PATIENTS[:12] if LabelSkew(1, 3, 0.5, 4).has(one, 1)] == SKEWED


def test_sites_by_column(tmp_path: Path) -> None:
    patients, labels = [1, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1]
    sites = ["St Mary", "St Mary", "Ost", "St Mary", "Ost", "Süd"]
    path = write(tmp_path / "a file.npz", patients, labels, sites=sites)
    for written in ("St%20Mary", "St+Mary", "St Mary"):
        assert images(f"{path}?split=column&site={written}", ("train",)).patients == ("p1", "p1")
    assert images(f"{path}?split=column&site=St%20Mary", ("test",)).patients == ("p3",)
    assert images(f"{path}?split=column&site=Süd", ("train",)).patients == ("p5",)
    with pytest.raises(UsageError, match=r"nobody is at the site 'West'.*Ost, St Mary, Süd"):
        images(f"{path}?split=column&site=West", ("train",))
    twice = write(tmp_path / "twice.npz", patients, labels, sites=["St Mary", "Ost", *sites[2:]])
    with pytest.raises(UsageError, match="1 patients have records at several sites"):
        images(f"{twice}?split=column&site=Ost", ("train",))
    none = write(tmp_path / "none.npz", patients, labels)
    with pytest.raises(UsageError, match="the file has none"):
        images(f"{none}?split=column&site=Ost", ("train",))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/a b/c.npz", Source("/a b/c.npz", Whole())),
        ("c.npz?site=2&of=8", Source("c.npz", Even(2, 8, 0))),
        ("c.npz?of=8&seed=5&split=iid&site=8", Source("c.npz", Even(8, 8, 5))),
        ("c.npz?site=1&of=2&split=label&alpha=0.5", Source("c.npz", LabelSkew(1, 2, 0.5, 0))),
        ("c.npz?split=column&site=a%26b", Source("c.npz", Column("a&b"))),
        ("what?.npz?", Source("what?.npz", Whole())),
        ("medmnist:bloodmnist_64?site=1&of=1", Source("medmnist:bloodmnist_64", Even(1, 1, 0))),
    ],
)
def test_sources(source: str, expected: Source) -> None:
    assert parse(source) == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "names no file"),
        ("?site=1&of=2", "names no file"),
        ("c.npz?site=1", "needs the option of"),
        ("c.npz?site=0&of=2", "no site 0 of 2"),
        ("c.npz?site=3&of=2", "no site 3 of 2"),
        ("c.npz?site=1&of=2000", "no site 1 of 2000"),
        ("c.npz?site=-1&of=2", "site=-1 is not a whole number"),
        ("c.npz?site=1&of=2&seed=1e3", "seed=1e3"),
        ("c.npz?site=1&of=2&site=2", "given twice"),
        ("c.npz?site=1&of=2&shuffle=yes", "no option 'shuffle'"),
        ("c.npz?site=1&of=2&alpha=1", "no option 'alpha'"),
        ("c.npz?site=1&of=2&split=label", "needs the option alpha"),
        ("c.npz?site=1&of=2&split=label&alpha=nan", "alpha=nan is not between"),
        ("c.npz?site=1&of=2&split=label&alpha=0", "alpha=0.0 is not between"),
        ("c.npz?site=1&of=2&split=label&alpha=much", "is not between"),
        ("c.npz?split=whole", "no split 'whole'"),
        ("c.npz?split=random", "no split 'random'"),
        ("c.npz?site", "NAME=VALUE"),
        ("c.npz?site=%ff&split=column", "NAME=VALUE"),
        ("medmnist:../../etc/passwd", "not a MedMNIST file"),
        ("medmnist:PneumoniaMNIST", "not a MedMNIST file"),
    ],
)
def test_bad_sources(source: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse(source)


@QUICK
@given(st.text(max_size=60) | st.text(max_size=30).map("c.npz?site=1&of=2&".__add__))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    try:
        parse(text)
    except CipherwardError as error:
        assert str(error).isprintable()


# medmnist:NAME, with a stand-in for the package: the real one fetches 4 MB to 16 GB from the internet

STAND_IN = """
import shutil
from pathlib import Path
from .info import INFO
class PneumoniaMNIST:
    def __init__(self, split, download, root, size):
        assert (split, download, size) == ("train", True, 28)
        source = Path(__file__).with_name("remote.npz")
        if not source.exists():
            raise RuntimeError("Automatic download failed!")
        shutil.copy(source, Path(root) / "pneumoniamnist.npz")
"""
INFO = """
from pathlib import Path
DEFAULT_ROOT = Path(__file__).parent / "cache"
INFO = {
    "pneumoniamnist": {"python_class": "PneumoniaMNIST", "task": "binary-class", "url": "https://example.org/p.npz"},
    "chestmnist": {"python_class": "ChestMNIST", "task": "multi-label, binary-class"},
    "organmnist3d": {"python_class": "OrganMNIST3D", "task": "multi-class"},
}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    folder = tmp_path / "medmnist"
    (folder / "cache").mkdir(parents=True)
    (folder / "__init__.py").write_text(STAND_IN)
    (folder / "info.py").write_text(INFO)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("medmnist", "medmnist.info"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("medmnist", "medmnist.info"):
        sys.modules.pop(name, None)


def test_a_public_file_is_fetched_once(package: Path) -> None:
    write(package / "remote.npz", [1, 2, 3, 4], [0, 1, 0, 1])
    assert images("medmnist:pneumoniamnist", ("train",)).patients == ("p1", "p2", "p4")
    (package / "remote.npz").unlink()
    whole = images("medmnist:pneumoniamnist", ("test",)).patients
    assert whole == ("p3",)
    assert [one.name for one in (package / "cache").iterdir()] == ["pneumoniamnist.npz"]


def test_a_download_that_fails_says_where_the_file_is(package: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"could not download it.*https://example.org/p.npz"):
        images("medmnist:pneumoniamnist", ("train",))
    assert not list((package / "cache").iterdir())


@pytest.mark.parametrize("name", ["chestmnist", "organmnist"])
def test_what_is_no_task_is_not_fetched(package: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"one class a record.*Known are pneumoniamnist"):
        images(f"medmnist:{name}", ("train",))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(EnvironmentProblem, match=r"not installed.*cipherward\[medmnist\]"):
        images("medmnist:pneumoniamnist", ("train",))


def test_a_patient_with_two_labels_is_at_one_site() -> None:
    assert Counter(LabelSkew(site, 4, 0.1).has("x", 1) for site in (1, 2, 3, 4)) == {True: 1, False: 3}
