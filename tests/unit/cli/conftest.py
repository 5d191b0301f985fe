"""A consortium that the commands themselves made, and ways to run more of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cipherward.cli.app import main
from cipherward.crypto.pki.fingerprint import show
from cipherward.crypto.pki.member_files import read_anchor

PASSPHRASE = "five random words in a row"
STUDY = (Path(__file__).parents[3] / "examples" / "heart" / "study.toml").read_text()
TWO_SITES = (
    STUDY.replace('sites = ["cleveland", "hungary", "switzerland", "va-long-beach"]', "")
    .replace("minimum = 3", "minimum = 2")
    .replace('name = "switzerland"', 'name = "hungary"')
)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Two sites, a hub, an operator and a signed study, each command in a process of its own."""
    folder = tmp_path_factory.mktemp("made")
    environment = os.environ | {"CIPHERWARD_PASSPHRASE": PASSPHRASE}

    def cipherward(*arguments):
        command = [sys.executable, "-m", "cipherward.cli.app", *arguments, "--json"]
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == ""
        return json.loads(ended.stdout)

    fingerprint = cipherward("consortium", "init", "heart")["fingerprint"]
    trust = ["--consortium", "heart", "--anchor", "consortium/anchor.pem", "--fingerprint", fingerprint]
    for role, name, more in (
        ("site", "cleveland", []),
        ("site", "hungary", []),
        ("coordinator", "hub", ["--host", "localhost", "--host", "127.0.0.1"]),
        ("operator", "olga", []),
    ):
        asked = cipherward(role, "init", "--dir", name, "--name", name, *trust, *more)
        heard = ["--fingerprint", asked["fingerprint"]]
        approved = cipherward("consortium", "approve", asked["request"], *heard)
        assert approved["fingerprint"] == asked["fingerprint"]
        installed = cipherward(role, "init", "--dir", name, "--credential", approved["credential"])
        assert installed["identity"] == approved["identity"] == f"spiffe://heart/{role}/{name}"
    (folder / "study.toml").write_text(TWO_SITES)
    weights = ["--weights", "initial.f32", "--task-seed", "7"]
    signed = cipherward("consortium", "sign-study", "study.toml", *weights)
    assert (signed["version"], signed["sites"], signed["parameters"]) == (1, ["cleveland", "hungary"], 23)
    assert signed["trust"].startswith("Suite quorum: 2 of 2 sites open a sum.")
    return folder


class CommandLine:
    """Runs commands in this process."""

    passphrase = PASSPHRASE
    study = TWO_SITES

    def __init__(self, capsys):
        self._capsys = capsys

    def run(self, *arguments):
        """Status, standard output and standard error."""
        status = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return status, out, err

    def done(self, *arguments):
        """The JSON that a successful command printed."""
        status, out, err = self.run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    def fails(self, status, words, *arguments):
        """The command ends with that status and one line that says what, why and what to do."""
        got, out, err = self.run(*arguments)
        assert (got, out) == (status, ""), err
        assert err.startswith("error: CW-") and err.count("\n") == 1, err
        assert words in err, err

    @staticmethod
    def init(role="site", name="basel", **changes):
        """The arguments of a first init."""
        options = {
            "dir": name,
            "consortium": "heart",
            "name": name,
            "anchor": "consortium/anchor.pem",
            "fingerprint": show(read_anchor(Path("consortium")).fingerprint),
        } | changes
        pairs = [(f"--{key}", value) for key, value in options.items() if value is not None]
        return [role, "init", *(part for pair in pairs for part in pair)]

    @staticmethod
    def sign_study(*more, change=("", ""), weights="initial.f32"):
        """The arguments of sign-study for a changed study."""
        assert change[0] in TWO_SITES
        Path("changed.toml").write_text(TWO_SITES.replace(*change, 1))
        return ["consortium", "sign-study", "changed.toml", "--weights", weights, "--out", "new.pem", *more]


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """In an empty folder, with the passphrase in the environment and no terminal to ask at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIPHERWARD_PASSPHRASE", PASSPHRASE)
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield CommandLine(capsys)


@pytest.fixture
def here(cli, made, tmp_path):
    """A copy of the consortium, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path
