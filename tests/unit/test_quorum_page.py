"""What docs/quorum.md and docs/run-consortium.md say in figures is what the code does."""

import re
from pathlib import Path

import pytest

from cipherward.crypto.manifest_rules import colluders_withstood, least_cohort, least_threshold
from cipherward.crypto.quorum.params import SETS, parameters
from cipherward.crypto.quorum_records import ENCRYPTED_VECTOR_BYTES, SEALED_KEY_BYTES, SEALED_SHARE_BYTES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE, ADMIN, SITE = (
    (DOCS / f"{name}.md").read_text() for name in ("quorum", "run-consortium", "install-site")
)


def rows(page, first_column):
    """The cells of the table whose head begins with that column."""
    head, found = f"| {first_column} |", []
    for line in page[page.index(head) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len(found) > 1
    return found


def test_table_of_thresholds():
    for n, t, c, missing in ([int(cell) for cell in row] for row in rows(PAGE, "n")):
        assert (t, c, missing) == (least_threshold(n), colluders_withstood(t, n), n - t)


def test_table_of_thresholds_for_admins():
    for n, t, c, k, missing in ([int(cell) for cell in row] for row in rows(ADMIN, "hospitals")):
        assert t >= least_threshold(n)
        assert (c, k, missing) == (colluders_withstood(t, n), least_cohort(t, c), n - t)


@pytest.mark.parametrize(("name", "most"), [("q32", 64), ("q16", 1)])
def test_table_of_precision(name, most):
    for sites, scale, bound in rows(PAGE, f"roster, {name}, B = {most}"):
        params = parameters(name, float(most), int(sites))
        assert params.scale == 2 ** int(scale.removeprefix("2^"))
        assert params.error_bound(int(sites)) == pytest.approx(float(bound), rel=0.01)


def test_table_of_noise_for_admins():
    section = ADMIN[ADMIN.index("### Choose a strategy") :].replace("  |", "|")
    for n, k, c, h, noise in rows(section, "hospitals"):
        t = least_threshold(int(n))
        assert int(k) in (int(n), t)
        assert int(c) == colluders_withstood(t, int(n)) and int(h) == int(k) - int(c)
        assert float(noise) == pytest.approx((int(n) / int(h)) ** 0.5, abs=0.005)


def test_table_of_parameter_sets():
    figures = {row[0].strip("`"): row for row in rows(PAGE, "set")}
    for name, one in SETS.items():
        assert int(figures[name][2].split()[0]) == one.modulus
        for figure in figures[name][4:]:
            assert figure.removeprefix("≥ ") in one.justification


def test_sizes():
    text = re.sub(r"\s+", " ", PAGE)
    assert f"sealed shares of {SEALED_SHARE_BYTES:,} bytes" in text
    assert f"an answer of {ENCRYPTED_VECTOR_BYTES:,} bytes and n sealed keys of {SEALED_KEY_BYTES:,}" in text
    for name, one in SETS.items():
        params = parameters(name, one.bound, one.sites)
        assert params.zero_elements * 2048 * params.residue.itemsize == 8192


@pytest.mark.parametrize(
    ("page", "heading", "folders", "least"),
    [
        (SITE, "### Log lines of the quorum suite", ("site_agent/daemon", "crypto"), 9),
        (ADMIN, "### What study watch and the logs may show", ("coordinator/rounds",), 3),
    ],
)
def test_log_lines_are_what_the_code_says(page, heading, folders, least):
    sources = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    # Adjacent literals are one, and what is filled in is a blank, here as in the page (N, R, T, M, ...).
    said = re.sub(r"\{[^{}]*\}", "_", re.sub(r'"\s*f?"', "", sources)).replace("site_ ", "sites ")
    section = page[page.index(heading) + 3 :].split("\n#")[0]
    lines = [line for row in rows(section, section.split("| ", 1)[1].split(" |")[0]) for line in row[:1]]
    quoted = [text for line in lines for text in re.findall(r"`([^`]+)`", line)]
    assert len(quoted) >= least
    for text in quoted:
        parts = [part for part in re.split(r"\b[NRTM]\b(?: \.\.\.)?|,", text) if part.strip()]
        assert all(part.strip() in said for part in parts), text
