"""Deployment files and docs say only what is so: every command line in them exists with every option it uses,
paths agree between files, links lead somewhere, and each error code is explained."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cipherward.cli.app import main
from cipherward.crypto.pki.member_files import REQUEST
from cipherward.site_agent.policy.template import TEMPLATE

ROOT = Path(__file__).parents[2]
SYSTEMD, DOCKER = ROOT / "deploy/systemd", ROOT / "deploy/docker"
ROLES = ("coordinator", "site")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")])


# Command lines


def problem_with(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with ``cipherward ...``; empty if nothing is."""
    words = []
    for word in command[1:]:
        if word.startswith("-"):
            break
        words.append(word)
    capsys.readouterr()
    status = main([*words, "--help"])
    text = capsys.readouterr().out
    if status != 0:
        return f"{command}: no such command"
    unknown = [
        word
        for word in command
        if word.startswith("--") and not re.search(rf"(?<![\w-]){word.partition('=')[0]}(?![\w-])", text)
    ]
    return f"{command}: no option {unknown}" if unknown else ""


def in_pages(page: Path) -> Iterator[list[str]]:
    """All commands in code blocks, and those quoted in sentences."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            found = re.match(r"(?:cw|(?:\S*/)?cipherward) (.+)", line.strip())
            if found:
                yield ["cipherward", *shlex.split(found[1], comments=True)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.findall(r"^ {4}(cipherward .+)$", prose, re.MULTILINE):
        yield shlex.split(indented, comments=True)
    for quoted in re.findall(r"`(cipherward [^`]+)`", prose):
        yield shlex.split(quoted.replace("\n", " "))


def settings(unit: Path) -> dict[str, list[str]]:
    """A unit's settings; what occurs twice has several values."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, separator, value = line.partition("=")
            assert separator, f"{unit.name}: {line!r}"
            found.setdefault(key, []).append(value)
    return found


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions, continuation lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def entry_command(dockerfile: Path) -> list[str]:
    found = dict(instructions(dockerfile))
    return [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]


def composed_command() -> list[str]:
    text = (ROOT / "deploy/compose.yaml").read_text()
    block = re.search(r"^    command:\n((?:      - .+\n)+)", text, re.MULTILINE)
    assert block is not None
    return ["cipherward", *(line.strip()[2:].strip('"') for line in block[1].splitlines())]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_wrong_command_and_a_wrong_option_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such command" in problem_with(["cipherward", "site", "fly"], capsys)
    assert "--wings" in problem_with(["cipherward", "site", "run", "--dir", "x", "--wings"], capsys)
    assert "--trainer" in problem_with(["cipherward", "site", "run", "--trainer", "x"], capsys)
    assert problem_with(["cipherward", "site", "run", "--coordinator", "x"], capsys) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_in_pages_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [problem_with(command, capsys) for command in in_pages(page)]
    assert not list(filter(None, problems))


def test_the_pages_hold_commands_to_check() -> None:
    assert {tuple(command[1:3]) for page in PAGES for command in in_pages(page)} >= {
        ("consortium", "init"),
        ("consortium", "approve"),
        ("consortium", "revoke"),
        ("consortium", "sign-study"),
        ("site", "init"),
        ("site", "policy"),
        ("site", "status"),
        ("coordinator", "init"),
        ("operator", "init"),
        ("study", "start"),
        ("study", "abort"),
    }


@pytest.mark.parametrize("role", ROLES)
def test_unit(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    unit = settings(SYSTEMD / f"cipherward-{role}.service")
    (start,) = unit["ExecStart"]
    command = shlex.split(start)
    assert problem_with(command, capsys) == ""
    page = (ROOT / "docs/operations.md").read_text()
    assert f"cipherward {role} run --metrics-port {option(command, '--metrics-port')}" in page
    (user,), (state,) = unit["User"], unit["StateDirectory"]
    assert user == state == f"cipherward-{role}"
    assert option(command, "--dir") == f"/var/lib/{state}"
    assert f"u {user} " in re.sub(" +", " ", (SYSTEMD / "sysusers.conf").read_text())
    assert f"d /var/lib/{state} 0700 {user} {user}" in re.sub(
        " +", " ", (SYSTEMD / "tmpfiles.conf").read_text()
    )
    assert unit["UMask"] == ["0077"] and unit["LimitCORE"] == ["0"] and unit["NoNewPrivileges"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"] and unit["TimeoutStopSec"] == ["20"]
    variables = set(re.findall(r"\$\{(\w+)\}", start))
    example = (SYSTEMD / "site.env.example").read_text()
    assert all(f"\n{name}=" in example for name in variables)


@pytest.mark.parametrize("role", ROLES)
def test_dockerfile(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    dockerfile = DOCKER / f"Dockerfile.{role}"
    steps = instructions(dockerfile)
    state = f"/var/lib/cipherward-{role}"
    assert {value.split()[0] for name, value in steps if name == "FROM"} == {"python:3.11-slim"}
    user = dict(steps)["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert any(name == "RUN" and f"--uid {user.split(':')[0]} " in value for name, value in steps)
    assert dict(steps)["VOLUME"] == state
    assert "constraints.txt" in " ".join(value for name, value in steps if name == "RUN")
    assert not any(name in ("ARG", "ADD") for name, _ in steps)
    command = entry_command(dockerfile)
    assert problem_with(command, capsys) == ""
    if role == "coordinator":
        port = option(command, "--listen").rpartition(":")[2]
        assert option(command, "--dir") == state
        assert dict(steps)["EXPOSE"] == port
        assert f"127.0.0.1:{option(command, '--metrics-port')}/healthz" in dict(steps)["HEALTHCHECK"]
        assert ".[site]" not in dockerfile.read_text() and "'.[postgresql]'" in dockerfile.read_text()


def test_compose(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "deploy/compose.yaml").read_text()
    command = composed_command()
    assert problem_with(command, capsys) == ""
    assert option(command, "--dir") == "/var/lib/cipherward-site"
    assert f"127.0.0.1:{option(command, '--metrics-port')}/healthz" in text
    for role in ROLES:
        assert f"dockerfile: deploy/docker/Dockerfile.{role}\n" in text
        assert f"{role}-state:/var/lib/cipherward-{role}" in text


def test_images_get_what_the_build_needs() -> None:
    kept = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    (listed,) = re.findall(r"^ROOTS = \((.*?)\)", (ROOT / "setup.py").read_text(), re.MULTILINE)
    roots = set(re.findall(r'"(\w+)"', listed))
    assert kept >= roots | {
        "src",
        "setup.py",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "NOTICE",
    }
    assert all((ROOT / name).exists() for name in kept)


# Pages


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in {
                slug(line.lstrip("# ")) for line in file.read_text().splitlines() if line[:1] == "#"
            }


def product_sources() -> Iterator[Path]:
    for root in ("src", "crypto", "coordinator", "site_agent", "evaluation"):
        yield from (ROOT / root).rglob("*.py")


def test_each_error_code_is_explained_and_no_other() -> None:
    used = {code for path in product_sources() for code in re.findall(r"\bCW-\d{3}\b", path.read_text())}
    rows = re.findall(r"^\| (CW-\d{3}) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(used) > 12 and sorted(rows) == sorted(used)


def test_each_policy_finding_is_explained() -> None:
    text = "".join((ROOT / "site_agent/policy" / name).read_text() for name in ("check.py", "quorum.py"))
    used = set(re.findall(r'(?:Finding\(\s*|yield |else )"([a-z]+(?:-[a-z]+)+)"', text)) | {"budget-study"}
    page = (ROOT / "docs/errors.md").read_text()
    assert len(used) > 15 and not {code for code in used if f"`{code}`" not in page}


def test_each_policy_key_is_explained() -> None:
    page = (ROOT / "docs/install-site.md").read_text()
    keys = re.findall(r"^#? ?([a-z_]+) = ", TEMPLATE, re.MULTILINE)
    assert len(keys) >= 8 and not [key for key in keys if f"`{key}" not in page]
    assert REQUEST in page
