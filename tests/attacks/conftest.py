"""Attacks on the quorum suite, each shown to succeed without the defence that stops it.

``kit/`` holds what they share, and other tests may use: ``kit_hospitals`` (real site agents against a played
coordinator). Members without agents (real keys, records and ciphertexts) are ``evaluation.threats.kit.parties``.
"""

import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kit"))

from kit_hospitals import PASSPHRASE, Enrolled, Hospitals

from cipherward.crypto.pki.consortium_folder import ConsortiumFolder, create_consortium


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory):
    """A consortium with seven hospitals, made once."""
    folder = tmp_path_factory.mktemp("enrolled")
    create_consortium(folder / "consortium", "heart", PASSPHRASE, time.time())
    consortium = ConsortiumFolder(folder / "consortium")
    return Enrolled(folder, consortium, consortium.unlock(PASSPHRASE))


@pytest.fixture
def make_hospitals(enrolled, tmp_path):
    """``make_hospitals(n, **manifest)``: the first n of them with an agent each, in a study they admitted."""
    made = []

    def make(count, **manifest):
        made.append(Hospitals(enrolled, tmp_path / f"world-{len(made)}", count, **manifest))
        return made[-1]

    yield make
    for world in made:
        world.close_all()
        shutil.rmtree(world.folder)
