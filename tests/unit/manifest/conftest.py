"""A consortium with five sites and a hub, and manifests made from the example study."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import build_manifest, verify_manifest
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.issuing import issue_credential, issue_status_list
from cipherward.crypto.pki.requests import make_request, verify_request
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.signing import SigningKey
from cipherward.crypto.study_file import StudyFile
from cipherward.ids import Identity, Role
from cipherward.proto.v1.identity_pb2 import Revocation

NOW = time.time()
EXAMPLE = Path(__file__).parents[3] / "examples" / "heart" / "study.toml"
TEXT = EXAMPLE.read_text()
TO_SHARED_KEY = (
    ('name = "quorum"\n', ""),
    ('parameters = "q32" ', "# "),
    ('# name = "shared-key"', 'name = "shared-key"'),
    ('# parameters = "seal', 'parameters = "seal'),
    ("# key_maker", "key_maker"),
)
ROOT = RootKey.generate()
ANCHOR = ROOT.make_anchor("heart", NOW)
NAMES = ("cleveland", "hungary", "switzerland", "va-long-beach")
TASK, WEIGHTS = bytes(range(32)), bytes(range(32, 64))


def issue(role, name, *, days=30, root=ROOT, anchor=ANCHOR):
    request = make_request(
        Identity.make("heart", role, name),
        SigningKey.generate(),
        tls.new_key(),
        sealing_key=SealingKey.generate().public() if role is Role.SITE else b"",
        hosts=["localhost"] if role is Role.COORDINATOR else [],
        now=NOW,
    )
    return issue_credential(root, anchor, verify_request(request), days=days, now=NOW)


SITES = {name: issue(Role.SITE, name) for name in (*NAMES, "basel")}
HUB = issue(Role.COORDINATOR, "hub")


def status(*serials):
    revoked = [Revocation(serial=serial, reason="left", revoked_at=1) for serial in serials]
    return issue_status_list(ROOT, ANCHOR, number=1, revoked=revoked, now=NOW)


def edited(*changes, text=TEXT):
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


SHARED_KEY = edited(*TO_SHARED_KEY)
"""The example with its other suite."""


def build(text=TEXT, *, names=NAMES, sites=None, previous=None, **changes):
    arguments = {
        "anchor": ANCHOR,
        "sites": sites if sites is not None else [SITES[name] for name in names],
        "coordinator": HUB,
        "revocations": status(),
        "task_code_digest": TASK,
        "initial_weights_digest": WEIGHTS,
        "parameter_count": 23,
        "previous": previous,
        "now": NOW,
    } | changes
    return build_manifest(StudyFile.parse(text), **arguments)


def signed(manifest):
    return ROOT.sign(Label.MANIFEST, manifest)


def trust(manifest):
    return verify_manifest(signed(manifest), ANCHOR)


def version_2(text=None, names=NAMES, previous=None, **changes):
    text = text or edited(("# first_round = 4 ", "first_round = 4 "))
    return build(text, names=names, previous=previous or trust(build()), **changes)


@pytest.fixture(scope="session")
def kit():
    """The names above, for tests: with importlib mode they cannot be imported."""
    return SimpleNamespace(
        NOW=NOW,
        TEXT=TEXT,
        SHARED_KEY=SHARED_KEY,
        ROOT=ROOT,
        ANCHOR=ANCHOR,
        NAMES=NAMES,
        TASK=TASK,
        WEIGHTS=WEIGHTS,
        SITES=SITES,
        HUB=HUB,
        issue=issue,
        status=status,
        edited=edited,
        build=build,
        signed=signed,
        trust=trust,
        version_2=version_2,
    )
