"""Joining a consortium and signing a study, as people and scripts type it."""

import os
import pty
import shutil
import subprocess
import sys
import time

import numpy as np

from cipherward.crypto.manifest import require_member, verify_manifest
from cipherward.crypto.pki.armour import Kind, unarmour_signed
from cipherward.crypto.pki.store import load_member
from cipherward.crypto.transcript import model_digest
from cipherward.ids import Role


def test_everyone_loads_and_the_study_holds(here):
    now = time.time()
    members = {
        name: load_member(here / name, role, now)
        for name, role in (
            ("cleveland", Role.SITE),
            ("hungary", Role.SITE),
            ("hub", Role.COORDINATOR),
            ("olga", Role.OPERATOR),
        )
    }
    signed = unarmour_signed(Kind.MANIFEST, (here / "manifest.pem").read_bytes())
    trust = verify_manifest(signed, members["hungary"].anchor)
    for name in ("cleveland", "hungary", "hub"):
        require_member(trust, members[name].credential)
    weights = np.fromfile(here / "initial.f32", dtype="<f4")
    assert weights.size == trust.manifest.parameter_count == 23
    assert model_digest(weights) == trust.manifest.initial_weights_digest


def test_secrets_are_the_owners_alone_and_the_root_is_encrypted(here):
    secrets = list(here.glob("*/*.key"))
    assert len(secrets) == 2 * 3 + 2 * 2 + 1
    for path in secrets:
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert b"PRIVATE KEY" not in (here / "consortium" / "root.key").read_bytes()
    assert "require_dp = true" in (here / "cleveland" / "policy.toml").read_text()
    assert not (here / "hub" / "policy.toml").exists()


def test_a_person_reads_what_comes_next(cli, here):
    status, out, _ = cli.run(*cli.init())
    assert status == 0
    assert "Fingerprint of the keys: " in out
    assert "send basel/request.pem" in out and "policy.toml" in out
    status, out, _ = cli.run("consortium", "approve", "basel/request.pem", "--days", "20")
    assert status == 0 and "is approved until" in out
    file = next((here / "consortium" / "credentials").glob("site-basel-*.pem"))
    status, out, _ = cli.run("site", "init", "--dir", "basel", "--credential", file)
    assert status == 0 and "warning: the certificate of spiffe://heart/site/basel expires in 19 days" in out


def test_a_root_comes_with_its_backup_procedure(cli, tmp_path):
    (tmp_path / "words").write_text("another long passphrase\n")
    (tmp_path / "words").chmod(0o600)
    status, out, _ = cli.run("consortium", "init", "lungs", "--passphrase-file", "words")
    assert status == 0
    assert "Fingerprint: " in out and "two media kept in different places" in out
    cli.fails(1, "passphrase is wrong", "consortium", "approve", _request(cli, tmp_path))
    status, _, err = cli.run("consortium", "approve", "a/request.pem", "--passphrase-file", "words")
    assert status == 0, err


def _request(cli, folder):
    cli.run(*cli.init(name="a", consortium="lungs"))
    return folder / "a" / "request.pem"


def test_a_second_run_keeps_keys_and_policy(cli, here):
    first = cli.done(*cli.init())
    (here / "basel" / "policy.toml").write_text("# ours\n")
    keys = {path.name: path.read_bytes() for path in (here / "basel").glob("*.key")}
    assert cli.done(*cli.init())["fingerprint"] == first["fingerprint"]
    assert {path.name: path.read_bytes() for path in (here / "basel").glob("*.key")} == keys
    assert (here / "basel" / "policy.toml").read_text() == "# ours\n"


def test_lost_keys_are_replaced_on_purpose_only(cli, here):
    shutil.rmtree(here / "hungary")
    asked = cli.done(*cli.init(name="hungary"))
    cli.fails(1, "--replace", "consortium", "approve", asked["request"])
    status, out, _ = cli.run("consortium", "approve", asked["request"], "--replace")
    assert status == 0 and "distribute consortium/status-list.pem, number 2" in out
    # The manifest names the old keys: the study needs a next version, and gets it.
    later = ("# first_round = 4 ", "first_round = 4 ")
    signed = cli.done(*cli.sign_study("--previous", "manifest.pem", change=later))
    assert (signed["version"], signed["sites"]) == (2, ["cleveland", "hungary"])


def test_a_revoked_member_is_named_by_the_next_list(cli, here):
    assert cli.done("consortium", "revoke", "hungary", "--reason", "left")["status_list"] == 2
    operator = ["consortium", "revoke", "olga", "--role", "operator", "--reason", "left"]
    assert cli.done(*operator)["status_list"] == 3
    listed = ("# Left out: every approved site.", 'sites = ["cleveland", "hungary"]')
    cli.fails(2, "hungary has no credential in force", *cli.sign_study(change=listed))


def _at_a_terminal(folder, arguments, answers):
    """Run a command with a terminal for its standard input; ``answers``: what is typed at which prompt. Gives the
    status and what was printed."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cipherward.cli.app", *arguments],
        cwd=folder,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "CIPHERWARD_PASSPHRASE"},
    ) as process:
        try:
            shown = b""
            for prompt, typed in answers:
                # Only then: reading a passphrase throws away what was typed before it was asked for.
                while prompt.encode() not in shown:
                    part = os.read(process.stdout.fileno(), 4096)
                    assert part, f"ended before {prompt!r}: {shown.decode()}"
                    shown += part
                time.sleep(0.2)
                os.write(controller, f"{typed}\n".encode())
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            os.close(terminal)
            os.close(controller)
    return process.returncode, (shown + out).decode()


def test_at_a_terminal_the_admin_is_asked(cli, here):
    cli.done(*cli.init())
    approve = ["consortium", "approve", "basel/request.pem"]
    question, passphrase = "Did the member read you the same", "Passphrase of the root key"
    status, _ = _at_a_terminal(here, approve, [(question, "n")])
    assert status == 1
    assert not list((here / "consortium" / "credentials").glob("site-basel-*"))
    status, out = _at_a_terminal(here, approve, [(question, "y"), (passphrase, cli.passphrase)])
    assert status == 0 and cli.passphrase not in out, out
    assert len(list((here / "consortium" / "credentials").glob("site-basel-*"))) == 1


def test_at_a_terminal_a_member_types_the_fingerprint(cli, here):
    arguments, prompt = cli.init(fingerprint=None), "Fingerprint of the anchor"
    status, out = _at_a_terminal(here, arguments, [(prompt, "0000 " * 16)])
    assert status == 1 and "fingerprint does not belong" in out
    status, out = _at_a_terminal(here, arguments, [(prompt, cli.init()[-1].upper())])
    assert status == 0, out
