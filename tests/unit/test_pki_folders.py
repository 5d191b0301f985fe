"""The folders of members and of the consortium: what is made, kept, installed, and found wrong."""

import json
import pickle
import shutil

import pytest

from cipherward.crypto.pki import consortium_folder, member_files
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium
from cipherward.crypto.pki.member_files import create_member, install_credential
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.pki.site_keys import ensure_sealing_key, load_sealing_key
from cipherward.crypto.pki.store import load_member
from cipherward.errors import (
    ConflictError,
    EnvironmentProblem,
    FormatError,
    IdentityError,
    UsageError,
    VerificationError,
)
from cipherward.ids import Identity, Role

NOW = 1_800_000_000.0
PASSPHRASE = "correct horse battery"
DAY = 86_400


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A consortium, made once: its scrypt takes most of a second."""
    folder = tmp_path_factory.mktemp("made") / "consortium"
    create_consortium(folder, "heart", PASSPHRASE, NOW)
    root = ConsortiumFolder(folder).unlock(PASSPHRASE)
    return folder, root


@pytest.fixture
def consortium(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "consortium")
    return ConsortiumFolder(tmp_path / "consortium")


@pytest.fixture
def root(made):
    return made[1]


def identity(role, name):
    return Identity.make("heart", role, name)


def ask(folder, anchor, role=Role.SITE, name="alpha"):
    return create_member(
        folder,
        identity(role, name),
        anchor,
        now=NOW,
        hosts=["localhost"] if role is Role.COORDINATOR else [],
        sealing_key=(lambda: ensure_sealing_key(folder)) if role is Role.SITE else bytes,
    )


def join(folder, consortium, root, role=Role.SITE, name="alpha", **options):
    request = ask(folder, consortium.anchor, role, name)
    options = {"days": 365, "replace_keys": False, "now": NOW} | options
    _, path = consortium.approve(root, request, **options)
    install_credential(folder, path.read_bytes(), options["now"])
    return path


@pytest.mark.parametrize("role", list(Role))
def test_a_member_asks_is_approved_and_loads(tmp_path, consortium, root, role):
    folder = tmp_path / "member"
    join(folder, consortium, root, role)
    member = load_member(folder, role, NOW)
    assert member.identity == identity(role, "alpha")
    assert member.anchor.fingerprint == consortium.anchor.fingerprint
    assert member.signing_key.public() == member.credential.signing_key
    assert member.days_left(NOW) == 365 and member.warnings(NOW) == ()
    for secret in folder.glob("*.key"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "sealing.key").exists() == (role is Role.SITE)
    if role is Role.SITE:
        key = load_sealing_key(folder, member.credential.sealing_key)
        assert key.public() == member.credential.sealing_key
    assert b"BEGIN CERTIFICATE" in (folder / "tls.crt").read_bytes()
    secret = (folder / "signing.key").read_bytes()
    assert secret.hex() not in repr(member) and "PRIVATE KEY" not in repr(member)
    with pytest.raises(TypeError):
        pickle.dumps(member)


def test_a_second_run_keeps_every_key(tmp_path, consortium):
    folder = tmp_path / "member"
    first = ask(folder, consortium.anchor)
    before = {path.name: path.read_bytes() for path in folder.glob("*.key")}
    second = ask(folder, consortium.anchor)
    assert {path.name: path.read_bytes() for path in folder.glob("*.key")} == before
    assert first.fingerprint == second.fingerprint


def test_a_run_that_was_interrupted_is_completed(tmp_path, consortium):
    folder = tmp_path / "member"
    ask(folder, consortium.anchor)
    kept = (folder / "tls.key").read_bytes()
    for name in ("signing.key", "sealing.key", "request.pem", "anchor.pem"):
        (folder / name).unlink()
    ask(folder, consortium.anchor)
    assert (folder / "tls.key").read_bytes() == kept


def test_a_folder_is_not_reused_for_another_member_or_root(tmp_path, consortium, made):
    folder = tmp_path / "member"
    ask(folder, consortium.anchor)
    with pytest.raises(UsageError, match=r"belongs to .*alpha"):
        ask(folder, consortium.anchor, name="beta")
    other = made[1].make_anchor("heart", NOW)
    with pytest.raises(UsageError, match="pins another"):
        ask(folder, other)
    with pytest.raises(UsageError, match="is of consortium lungs"):
        ask(tmp_path / "new", made[1].make_anchor("lungs", NOW))
    assert not (tmp_path / "new").exists()


def _loads(folder, words, error, role=Role.SITE, now=NOW):
    with pytest.raises(error, match=words) as caught:
        load_member(folder, role, now)
    assert "\n" not in str(caught.value)


def test_the_preflight_names_what_is_missing(tmp_path, consortium, root):
    folder = tmp_path / "member"
    _loads(folder, r"site init", EnvironmentProblem)
    ask(folder, consortium.anchor)
    _loads(folder, r"not been approved yet.*site init --dir", UsageError)
    join(folder, consortium, root)
    _loads(folder, r"belongs to .*alpha", UsageError, Role.OPERATOR)
    for name in ("anchor.pem", "status-list.pem", "tls.key", "signing.key"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        _loads(folder, rf"{name}.*no such file", EnvironmentProblem)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    load_member(folder, Role.SITE, NOW)


@pytest.mark.parametrize("name", ["tls.key", "signing.key", "sealing.key"])
def test_the_preflight_refuses_keys_that_others_can_read(tmp_path, consortium, root, name):
    folder = tmp_path / "member"
    join(folder, consortium, root)
    (folder / name).chmod(0o640)
    with pytest.raises(EnvironmentProblem, match=rf"{name}.*mode 0640.*chmod 600"):
        load_sealing_key(folder, load_member(folder, Role.SITE, NOW).credential.sealing_key)


def test_the_preflight_checks_the_time(tmp_path, consortium, root):
    folder = tmp_path / "member"
    join(folder, consortium, root)
    member = load_member(folder, Role.SITE, NOW + 336 * DAY)
    assert member.days_left(NOW + 336 * DAY) == 29
    assert "expires in 29 days, on 2028-01-15" in member.warnings(NOW + 336 * DAY)[0]
    assert member.warnings(NOW + 335 * DAY) == ()
    _loads(folder, r"has expired.*valid until 2028-01-15", IdentityError, now=NOW + 366 * DAY)
    _loads(folder, "Set this machine's clock", IdentityError, now=NOW - 301)


@pytest.mark.parametrize("name", ["tls.key", "signing.key", "sealing.key"])
def test_a_key_of_another_member_is_noticed(tmp_path, consortium, root, name):
    folder, other = tmp_path / "member", tmp_path / "other"
    join(folder, consortium, root)
    join(other, consortium, root, name="beta")
    shutil.copy(other / name, folder / name)
    with pytest.raises(IdentityError, match=rf"{name} does not belong"):
        load_sealing_key(folder, load_member(folder, Role.SITE, NOW).credential.sealing_key)


def test_a_credential_of_another_member_is_noticed(tmp_path, consortium, root):
    folder, other = tmp_path / "member", tmp_path / "other"
    join(folder, consortium, root)
    path = join(other, consortium, root, name="beta")
    with pytest.raises(IdentityError, match="beta"):
        install_credential(folder, path.read_bytes(), NOW)
    shutil.copy(other / "credential.pem", folder / "credential.pem")
    _loads(folder, r"is for .*beta", IdentityError)


def test_what_is_not_a_credential_file_is_refused(tmp_path, consortium, root):
    folder = tmp_path / "member"
    request = ask(folder, consortium.anchor)
    credential, path = consortium.approve(root, request, days=9, replace_keys=False, now=NOW)
    text = path.read_bytes()
    foreign = root.make_anchor("heart", NOW)
    for bad, words in (
        (b"", "incomplete"),
        (consortium.anchor.to_text(), "incomplete"),
        (text + consortium.anchor.to_text(), "must not hold this anchor"),
        ((folder / "request.pem").read_bytes(), "must not hold this request"),
        (member_files.bundle(foreign, credential, consortium.status()), "another consortium root"),
        (text.replace(b"\n", b"\n ", 3), "not"),
    ):
        with pytest.raises(VerificationError, match=words):
            install_credential(folder, bad, NOW)
    with pytest.raises(IdentityError, match="expired"):
        install_credential(folder, text, NOW + 10 * DAY)
    assert not (folder / "credential.pem").exists() and not (folder / "status-list.pem").exists()
    install_credential(folder, text, NOW)


def test_a_credential_for_older_keys_is_refused(tmp_path, consortium, root):
    folder = tmp_path / "member"
    path = join(folder, consortium, root)
    shutil.rmtree(folder)
    ask(folder, consortium.anchor)
    with pytest.raises(IdentityError, match="for other keys"):
        install_credential(folder, path.read_bytes(), NOW)


def test_approving_again_renews_and_needs_no_new_keys(tmp_path, consortium, root):
    folder = tmp_path / "member"
    join(folder, consortium, root)
    first = load_member(folder, Role.SITE, NOW).credential
    join(folder, consortium, root, now=NOW + 100 * DAY)
    second = load_member(folder, Role.SITE, NOW + 400 * DAY).credential
    assert second.serial != first.serial and second.fingerprint == first.fingerprint
    assert consortium.credential(first.identity, NOW + 101 * DAY).serial == second.serial
    assert consortium.status().number == 1


def test_other_keys_under_a_name_in_use_need_replace(tmp_path, consortium, root):
    old, new = tmp_path / "old", tmp_path / "new"
    join(old, consortium, root)
    request = ask(new, consortium.anchor)
    with pytest.raises(ConflictError, match="--replace"):
        consortium.approve(root, request, days=365, replace_keys=False, now=NOW)
    _, path = consortium.approve(root, request, days=365, replace_keys=True, now=NOW)
    install_credential(new, path.read_bytes(), NOW)
    assert load_member(new, Role.SITE, NOW).status.newest.number == 2
    member = load_member(old, Role.SITE, NOW)
    assert member.status.offer(consortium.status().signed)
    _loads(old, "revoked.*replaced by other keys", IdentityError)
    # An expired credential does not hold its name.
    join(tmp_path / "later", consortium, root, now=NOW + 400 * DAY)


def test_a_revoked_member_does_not_load_and_is_not_listed(tmp_path, consortium, root):
    join(tmp_path / "a", consortium, root, name="alpha")
    join(tmp_path / "b", consortium, root, name="beta")
    join(tmp_path / "o", consortium, root, Role.OPERATOR, name="alpha")
    assert [who.name for who in consortium.members(Role.SITE, NOW)] == ["alpha", "beta"]
    listed = consortium.revoke(root, identity(Role.SITE, "alpha"), "left", NOW)
    assert listed.number == 2 and len(listed.revoked) == 1
    assert [who.name for who in consortium.members(Role.SITE, NOW)] == ["beta"]
    assert [who.name for who in consortium.members(Role.OPERATOR, NOW)] == ["alpha"]
    with pytest.raises(UsageError, match="nothing to revoke"):
        consortium.revoke(root, identity(Role.SITE, "alpha"), "left", NOW)
    with pytest.raises(UsageError, match="no credential in force"):
        consortium.credential(identity(Role.SITE, "alpha"), NOW)
    again = consortium.revoke(root, identity(Role.SITE, "beta"), "left", NOW)
    assert again.number == 3 and set(listed.revoked) < set(again.revoked)
    member = load_member(tmp_path / "a", Role.SITE, NOW)
    member.status.offer(again.signed)
    _loads(tmp_path / "a", "revoked.*left", IdentityError)


def test_a_root_is_never_overwritten_and_wants_its_passphrase(consortium, made):
    folder, _ = made
    before = (folder / "root.key").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        create_consortium(folder, "heart", PASSPHRASE, NOW)
    assert (folder / "root.key").read_bytes() == before
    assert (folder / "root.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(VerificationError, match="passphrase is wrong"):
        consortium.unlock("incorrect horse")


def test_a_consortium_folder_that_is_damaged_says_so(tmp_path, consortium, root):
    with pytest.raises(EnvironmentProblem, match="consortium init"):
        ConsortiumFolder(tmp_path)
    join(tmp_path / "a", consortium, root)
    folder = tmp_path / "consortium"
    index = json.loads((folder / "issued.json").read_text())
    for bad in ("", "[1]", '[{"serial": 3}]'):
        (folder / "issued.json").write_text(bad)
        with pytest.raises(FormatError, match="from a backup"):
            consortium.issued()
    index[0]["identity"] = str(identity(Role.SITE, "beta"))
    (folder / "issued.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"not the credential of .*beta"):
        consortium.credential(identity(Role.SITE, "beta"), NOW)


def test_a_root_and_an_anchor_of_different_backups_are_noticed(consortium, tmp_path):
    other = RootKey.generate().make_anchor("heart", NOW)
    (tmp_path / "consortium" / "anchor.pem").write_bytes(other.to_text())
    with pytest.raises(VerificationError, match="do not belong together"):
        ConsortiumFolder(tmp_path / "consortium").unlock(PASSPHRASE)


def test_the_newest_status_list_survives_a_restart(tmp_path, consortium, root):
    folder = tmp_path / "member"
    join(folder, consortium, root)
    join(tmp_path / "b", consortium, root, name="beta")
    old = consortium.status()
    new = consortium.revoke(root, identity(Role.SITE, "beta"), "left", NOW)
    assert load_member(folder, Role.SITE, NOW).status.offer(new.signed)
    restarted = load_member(folder, Role.SITE, NOW)
    assert restarted.status.newest.number == 2
    with pytest.raises(VerificationError, match="out of date"):
        restarted.status.offer(old.signed)
    # A status list of another kind of record in its place is refused, not ignored.
    (folder / "status-list.pem").write_bytes(armour_signed(Kind.ANCHOR, consortium.anchor.signed))
    _loads(folder, "is no status list", FormatError)


def test_no_temporary_files_remain(tmp_path, consortium, root):
    folder = tmp_path / "member"
    join(folder, consortium, root)
    assert sorted(path.name for path in folder.iterdir()) == [
        "anchor.pem",
        "credential.pem",
        "request.pem",
        "sealing.key",
        "signing.key",
        "status-list.pem",
        "tls.crt",
        "tls.key",
    ]
    assert sorted(path.name for path in (tmp_path / "consortium").iterdir()) == sorted(
        ["anchor.pem", consortium_folder.CREDENTIALS, "issued.json", "root.key", "status-list.pem"]
    )
    assert Anchor.from_text((folder / "anchor.pem").read_bytes()).consortium == "heart"
