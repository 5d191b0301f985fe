"""Every way to get a command wrong ends in one line that says what happened, why, and what to do."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cipherward.cli import app as app_module
from cipherward.cli.app import main


def commands(app, *path):
    """All of them, by name."""
    for group in app.registered_groups:
        yield from commands(group.typer_instance, *path, group.typer_instance.info.name)
    for one in app.registered_commands:
        yield [*path, one.name or one.callback.__name__.replace("_", "-")]


COMMANDS = list(commands(app_module.build()))


def test_every_command_is_known_here():
    assert len(COMMANDS) >= 30
    assert ["site", "policy", "check"] in COMMANDS and ["demo"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(cli, command):
    status, out, _ = cli.run(*command, "--help")
    assert status == 0
    assert re.search(rf"Examples?: cipherward {' '.join(command)}\b", " ".join(out.split()))


@pytest.mark.parametrize("group", ["consortium", "site", "coordinator", "operator"])
def test_a_group_alone_shows_its_help(cli, group):
    status, out, err = cli.run(group)
    assert status == 2 and "init" in out + err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["consortium", "nonsense"], ["consortium", "init"], ["site", "init", "--nonsense"]],
)
def test_a_mistyped_command_ends_with_2(cli, arguments):
    status, _, err = cli.run(*arguments)
    assert status == 2 and "Usage:" in err


# consortium init


def test_a_name_that_is_none_comes_with_a_suggestion(cli, tmp_path):
    cli.fails(1, "'heart-study' instead", "consortium", "init", "Heart Study")
    assert not (tmp_path / "consortium").exists()


def test_the_passphrase_must_be_long_and_come_from_somewhere(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("CIPHERWARD_PASSPHRASE", "short")
    cli.fails(2, "at least 12", "consortium", "init", "heart")
    monkeypatch.delenv("CIPHERWARD_PASSPHRASE")
    cli.fails(2, "--passphrase-file", "consortium", "init", "heart")
    (tmp_path / "words").write_text("a long enough passphrase")
    (tmp_path / "words").chmod(0o644)
    cli.fails(3, "chmod 600 words", "consortium", "init", "heart", "--passphrase-file", "words")
    cli.fails(3, "no such file", "consortium", "init", "heart", "--passphrase-file", "nowhere")
    (tmp_path / "words").write_bytes(b"\xff\xfe")
    (tmp_path / "words").chmod(0o600)
    cli.fails(2, "not UTF-8", "consortium", "init", "heart", "--passphrase-file", "words")
    # None of this left half a root behind.
    monkeypatch.setenv("CIPHERWARD_PASSPHRASE", cli.passphrase)
    assert cli.done("consortium", "init", "heart")["consortium"] == "heart"


def test_a_root_is_not_overwritten(cli, here):
    cli.fails(2, "never overwritten", "consortium", "init", "heart")


# init of members


@pytest.mark.parametrize(
    ("status", "words", "changes"),
    [
        (2, "lacks --name", {"name": None, "dir": "x"}),
        (2, "lacks --anchor, --consortium", {"anchor": None, "consortium": None}),
        (2, "by telephone and pass --fingerprint", {"fingerprint": None}),
        (1, "64 hexadecimal digits", {"fingerprint": "1f2e"}),
        (1, "not genuine", {"fingerprint": "00" * 32}),
        (3, "no such file", {"anchor": "nowhere.pem"}),
        (1, "holds manifest", {"anchor": "manifest.pem"}),
        (1, "does not begin with", {"anchor": "study.toml"}),
        (1, "'st-mary-s' instead", {"name": "St Mary's", "dir": "x"}),
        (2, "is of consortium heart, not lungs", {"consortium": "lungs"}),
        (2, "belongs to spiffe://heart/site/hungary", {"dir": "hungary"}),
        (2, "--credential goes with --dir alone", {"credential": "x.pem"}),
    ],
)
def test_a_site_init_that_cannot_be(cli, here, status, words, changes):
    cli.fails(status, words, *cli.init(**changes))
    assert not (here / "basel").exists() and not (here / "x").exists()


def test_a_coordinator_names_its_hosts(cli, here):
    cli.fails(2, "lacks --host", *cli.init("coordinator"))
    cli.fails(1, "without port", *cli.init("coordinator", host="hub.example:7443"))


def test_a_credential_that_cannot_be_installed(cli, here):
    hungary = next((here / "consortium" / "credentials").glob("site-hungary-*"))
    cli.fails(3, "no such file", "site", "init", "--dir", "nowhere", "--credential", hungary)
    cli.fails(
        1, "is for spiffe://heart/site/hungary", "site", "init", "--dir", "cleveland", "--credential", hungary
    )
    cli.fails(1, "incomplete", "site", "init", "--dir", "hungary", "--credential", "consortium/anchor.pem")
    cli.fails(
        2, "must be of role coordinator", "coordinator", "init", "--dir", "hungary", "--credential", hungary
    )


# approve and revoke


def test_a_request_that_is_not_approved(cli, here, monkeypatch):
    asked = cli.done(*cli.init())
    approve = ["consortium", "approve", "basel/request.pem"]
    cli.fails(1, "not genuine", *approve, "--fingerprint", "ab" * 32)
    cli.fails(2, "cannot be valid for 0 days", *approve, "--days", "0")
    cli.fails(3, "is not a consortium's folder", *approve, "--dir", "hungary")
    cli.fails(1, "holds anchor", "consortium", "approve", "consortium/anchor.pem")
    text = (here / "basel" / "request.pem").read_bytes()
    half = len(text) // 2
    changed = text[:half] + (b"A" if text[half : half + 1] != b"A" else b"B") + text[half + 1 :]
    (here / "changed.pem").write_bytes(changed)
    status, _, err = cli.run("consortium", "approve", "changed.pem")
    assert status == 1 and err.startswith("error: CW-3")
    monkeypatch.setenv("CIPHERWARD_PASSPHRASE", "not the right one")
    cli.fails(1, "passphrase is wrong", *approve, "--fingerprint", asked["fingerprint"])
    assert not list((here / "consortium" / "credentials").glob("site-basel-*"))


def test_nobody_unknown_is_revoked(cli, here):
    cli.fails(2, "nothing to revoke", "consortium", "revoke", "basel", "--reason", "left")
    cli.fails(
        2, "nothing to revoke", "consortium", "revoke", "hungary", "--role", "operator", "--reason", "x"
    )
    status, _, err = cli.run("consortium", "revoke", "hungary")
    assert status == 2 and "--reason" in err


# sign-study


@pytest.mark.parametrize(
    ("status", "words", "change"),
    [
        (2, "no suite 'lattice', because this version has", ('"quorum"', '"lattice"')),
        (2, "minimum cohort k is 1", ("minimum = 2", "minimum = 1")),
        (2, "study.round, because there is no such setting", ("rounds = 5", "rounds = 5\nround = 6")),
        (2, "site/geneva has no credential", ("# Left out: every approved site.", 'sites = ["geneva"]')),
        (2, "coordinator/centre has no credential", ('"hub"', '"centre"')),
        (2, "no task 'lung-disease'", ('[task]\nname = "heart-disease"', '[task]\nname = "lung-disease"')),
        (2, "does not begin with round 1", ("# first_round = 4 ", "first_round = 4 ")),
        (2, "key's maker is ''", ('name = "quorum"\nparameters = "q32"', 'name = "shared-key"')),
    ],
)
def test_a_study_that_is_not_signed(cli, here, status, words, change):
    cli.fails(status, words, *cli.sign_study(change=change))
    assert not (here / "new.pem").exists()


def test_who_can_open_an_update_is_said_when_a_study_is_signed(cli, here):
    _, out, err = cli.run(*cli.sign_study())
    assert "Suite quorum: 2 of 2 sites open a sum. The coordinator alone cannot" in out, err
    (here / "new.pem").unlink()
    shared = 'name = "shared-key"\nkey_maker = "hungary"'
    _, out, err = cli.run(*cli.sign_study(change=('name = "quorum"\nparameters = "q32"', shared)))
    assert "Suite shared-key: every site holds the key: one site together with the coordinator" in out, err


def test_weights_that_cannot_be(cli, here):
    cli.fails(3, "no such file", *cli.sign_study(weights="nowhere.f32"))
    cli.fails(2, "would overwrite", *cli.sign_study("--task-seed", "1"))
    for content, words in ((b"", "not a file of float32"), (b"12345", "not a file of float32")):
        (here / "bad.f32").write_bytes(content)
        cli.fails(2, words, *cli.sign_study(weights="bad.f32"))
    np.array([1.0, np.nan], dtype="<f4").tofile(here / "bad.f32")
    cli.fails(2, "not finite", *cli.sign_study(weights="bad.f32"))


def test_versions_and_files_that_do_not_fit(cli, here):
    cli.fails(2, "must be later than round 1", *cli.sign_study("--previous", "manifest.pem"))
    later = ("# first_round = 4 ", "first_round = 4 ")
    (here / "other.f32").write_bytes(bytes(4 * 23 + 4))
    cli.fails(
        2, "another model", *cli.sign_study("--previous", "manifest.pem", change=later, weights="other.f32")
    )
    cli.fails(1, "holds anchor", *cli.sign_study("--previous", "consortium/anchor.pem", change=later))
    (here / "new.pem").write_text("precious")
    cli.fails(2, "is not overwritten", *cli.sign_study())
    assert (here / "new.pem").read_text() == "precious"


# The frame


def test_an_unexpected_error_is_one_line_and_a_hint(cli, monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(app_module, "build", broken)
    cli.fails(70, "CW-999 unexpected RuntimeError, because two lines. Run again with CIPHERWARD_DEBUG=1")
    monkeypatch.setenv("CIPHERWARD_DEBUG", "1")
    _, _, err = cli.run()
    assert "Traceback" in err


LONG = "x" * 300
"""The operating system refuses it as a name, for any user."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["consortium", "approve", "request.pem", "--dir", LONG],
        ["consortium", "sign-study", "study.toml", "--weights", "initial.f32", "--out", LONG],
        ["site", "status", "--dir", LONG],
        ["site", "fsck", "--dir", LONG],
        ["site", "run", "--dir", "cleveland", "--coordinator", "localhost:1", "--trainer-socket", LONG],
        ["coordinator", "run", "--dir", LONG],
        ["coordinator", "fsck", "--dir", LONG],
        ["study", "status", "--dir", LONG, "--coordinator", "localhost:1"],
        ["audit", "verify", "--dir", LONG, "--anchor", "consortium/anchor.pem"],
        ["bench", "crypto", "--parameters", "1", "--sites", "2", "--json", "nowhere/out.json"],
        ["demo", "--json", "nowhere/out.json"],
    ],
    ids=" ".join,
)
def test_what_the_operating_system_refuses_is_no_defect_of_ours(cli, here, arguments):
    status, _, err = cli.run(*arguments)
    assert status == 3 and err.startswith("error: CW-200 ") and err.count("\n") == 1, err


@pytest.mark.parametrize("command", ["site", "coordinator"])
def test_a_folder_of_something_else_is_left_as_it_is(cli, here, command):
    (here / "some photographs").mkdir(mode=0o755)
    link = ["--coordinator", "localhost:1"] if command == "site" else []
    words = f"some photographs is not the folder of a {command}"
    cli.fails(3, words, command, "run", "--dir", "some photographs", *link)
    assert list((here / "some photographs").iterdir()) == []


def test_a_command_to_copy_names_a_folder_with_a_space(cli, here):
    init = cli.init(dir="university hospital")
    status, out, err = cli.run(*init)
    assert status == 0, err
    assert "init --dir 'university hospital' --credential FILE" in " ".join(out.split())
    run = ["site", "run", "--dir", "university hospital", "--coordinator", "localhost:1"]
    cli.fails(2, "init --dir 'university hospital' --cred", *run)


@pytest.mark.parametrize("address", ["hub", "with space:1", "http://hub:1", "hub:99999", "[::1", ":7443", ""])
@pytest.mark.parametrize(
    "command",
    [
        ["study", "status", "--dir", "olga"],
        ["study", "start", "manifest.pem", "--weights", "initial.f32", "--dir", "olga"],
        ["site", "run", "--dir", "cleveland"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_address_that_is_none(cli, here, command, address):
    cli.fails(2, "must be HOST:PORT", *command, "--coordinator", address)


@pytest.mark.parametrize("command", ["--help", "site policy check --dir cleveland", "threats list"])
def test_an_output_that_is_closed_or_full(here, command):
    run = [sys.executable, "-m", "cipherward.cli.app", *command.split()]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(run, cwd=here, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 3
    assert ended.stderr.startswith("error: CW-200 cannot use the output, because the disk is full.")
    shell = f"{' '.join(run)} 2>errors | true"
    subprocess.run(["bash", "-c", shell], cwd=here, check=True)
    assert (here / "errors").read_text() == ""


def test_the_version_is_told(cli):
    status, out, _ = cli.run("--version")
    assert status == 0 and re.fullmatch(r"cipherward \d+\.\d+\.\d+\S*\n", out)


def test_ctrl_c_ends_with_130(monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "build", stopped)
    assert main([]) == 130


def test_ctrl_c_in_a_command_ends_with_130(cli, monkeypatch):
    def stopped(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("cipherward.cli.consortium.read_passphrase", lambda *_a, **_k: stopped())
    status, _, err = cli.run("consortium", "init", "heart")
    assert (status, err) == (130, "")
