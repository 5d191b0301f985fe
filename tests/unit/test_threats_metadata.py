"""The metadata allow-list: the wire format, the store's schema and the documentation agree with it."""

import ast
import re
from pathlib import Path

from cipherward.coordinator.store import schema
from cipherward.evaluation.threats.attacks import census
from cipherward.evaluation.threats.attacks.metadata_fields import LOGGED, STORED, WIRE, allowed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/metadata.md").read_text()


def documented(title):
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    cells = [line.rsplit("|", 2)[1] for line in section.splitlines() if line.startswith("| ")]
    return frozenset(re.findall(r"`([^`]+)`", " ".join(cells)))


def test_the_page_is_the_list():
    assert documented("What an agent sends") == allowed(WIRE)
    assert documented("What a coordinator keeps") == allowed(STORED)
    assert documented("What a coordinator logs") == allowed(LOGGED)


def test_no_field_leaves_a_site_that_is_not_on_the_list():
    assert census.leaving_sites() == allowed(WIRE)


def test_no_column_is_kept_that_is_not_on_the_list():
    columns = {
        f"{table.name}.{column.name}" for table in schema.metadata.sorted_tables for column in table.columns
    }
    assert columns == {name for name in allowed(STORED) if not name.startswith("state:")}


def test_each_field_is_in_one_group():
    for groups in (WIRE, STORED, LOGGED):
        fields = [name for group in groups for name in group.fields.split()]
        assert len(fields) == len(set(fields))


def test_no_key_is_logged_that_is_not_on_the_list():
    keys = set()
    for path in (ROOT / "coordinator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "attr", getattr(node.func.value, "id", ""))
                if owner == "log" and node.func.attr in {"info", "warning", "error"}:
                    keys |= {keyword.arg for keyword in node.keywords}
    assert {"exception" if key == "exc_info" else key for key in keys} <= allowed(LOGGED)
