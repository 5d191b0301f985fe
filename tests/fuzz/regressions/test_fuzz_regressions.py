"""What fuzzing found, each by the smallest input that shows it. All of these were something else than an error of
ours, or took time or memory without bound."""

import json
import time
import tracemalloc
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fuzz_text import elements, tlv
from fuzz_world import NOW, consortium, signing_key, study, tls_key

from cipherward.cli.study_view import headline
from cipherward.clock import ManualClock
from cipherward.crypto.labels import Label
from cipherward.crypto.pki import tls
from cipherward.crypto.pki.armour import Kind, armour_signed
from cipherward.crypto.pki.consortium_folder import ConsortiumFolder
from cipherward.crypto.pki.peers import PeerVerifier
from cipherward.crypto.shared_key.seal_file import SealFormat
from cipherward.crypto.study_file import StudyFile
from cipherward.errors import (
    CipherwardError,
    FormatError,
    UsageError,
    VerificationError,
    WireError,
    from_wire,
)
from cipherward.isolated import _Broken, _refusal
from cipherward.proto.v1.coordinator_pb2 import Phase, StudyStatus
from cipherward.proto.v1.round_pb2 import Commit
from cipherward.settings_text import parse_toml
from cipherward.site_agent.daemon.rollback import check_own_commit
from cipherward.site_agent.policy.model import load as load_policy
from cipherward.wire_names import wire_name


def signed_with(der, change, key="root"):
    """The certificate or request with its signed part changed and signed again."""
    body, algorithm, _ = elements(elements(der)[0][1])
    fields = elements(body[1])
    change(fields)
    made = tlv(0x30, b"".join(tlv(*one) for one in fields))
    signature = tls_key(key).sign(made, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, made + tlv(*algorithm) + tlv(3, b"\x00" + signature))


def pem(der):
    from fuzz_files import _pem

    return _pem(der)


@pytest.fixture
def certificate():
    return consortium().credentials["anna"].certificate.public_bytes(Encoding.DER)


def test_a_certificate_of_a_version_that_does_not_exist(certificate):
    def change(fields):
        fields[0] = (0xA0, tlv(2, b"\x07"))

    changed = signed_with(certificate, change)
    with pytest.raises(FormatError, match="cannot be read"):
        tls.load_certificate(changed)
    with pytest.raises(FormatError, match="cannot be read"):
        tls.load_certificate_pem(pem(changed))


def test_a_request_for_a_certificate_of_a_version_that_does_not_exist():
    identity = consortium().identities["anna"]

    def change(fields):
        fields[0] = (2, b"\x05")

    with pytest.raises(FormatError, match="cannot be read"):
        tls.read_csr(signed_with(tls.make_csr(tls_key("anna"), identity), change, "anna"), identity)


def test_a_certificate_for_a_key_of_a_kind_that_nobody_knows(certificate):
    def change(fields):
        fields[6] = (
            0x30,
            fields[6][1].replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030105")),
        )

    changed = tls.load_certificate(signed_with(certificate, change))
    with pytest.raises(FormatError, match="must be a P-256 key"):
        tls.certificate_key_digest(changed)
    world = consortium()
    verifier = PeerVerifier(world.anchor, world.status, ManualClock(NOW))
    peer = {"x509_pem_cert": [tls.to_pem(changed)], "peer_spiffe_id": [b"spiffe://heart/site/anna"]}
    with pytest.raises(FormatError, match="must be a P-256 key"):
        verifier.verify(peer)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "9" * 4301,  # int() refuses so many digits, with a ValueError of its own
        "x = " + "[" * 5000,
        "x = " + "{a=" * 5000,
        "a." * 100_000 + "a = 1",  # 20 GB, before
        "[" + "a." * 20_000 + "a]",
        "x = 1\n" * 100_000,
        "x = '\udcff'",
    ],
)
def test_settings_that_took_all_memory_or_ended_in_a_traceback(text, tmp_path):
    content = text.encode("utf-8", "surrogateescape")
    for read in (load_policy, StudyFile.load):
        path = tmp_path / "settings.toml"
        path.write_bytes(content)
        started = time.process_time()
        with pytest.raises(CipherwardError):
            read(path)
        assert time.process_time() - started < 2


def test_dots_in_comments_are_no_dotted_keys():
    assert parse_toml(b"# " + b"." * 100 + b"\nx = 1\n", "a file") == {"x": 1}
    with pytest.raises(UsageError, match="line 2 of a file has more than 32 dots"):
        parse_toml(b"x = 1\n" + b"a." * 40 + b"a = 1\n", "a file")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a": 1}',
        "[1]",
        '[{"identity": "spiffe://heart/site/anna", "serial": 5, "issued_at": 1, "expires_at": "never",'
        ' "fingerprint": "00", "file": "a.pem"}]',
        '[{"identity": "spiffe://heart/site/anna", "serial": 5, "issued_at": 1, "expires_at": 2000000000,'
        ' "fingerprint": "00", "file": "../../root.key"}]',
        '[{"identity": "spiffe://heart/site/anna", "serial": 5, "issued_at": 1, "expires_at": 2000000000,'
        ' "fingerprint": "00", "file": "\\u0000"}]',
        '[{"identity": [], "serial": 5, "issued_at": 1, "expires_at": true, "fingerprint": "", "file": ""}]',
    ],
)
def test_a_damaged_index_of_credentials(text, tmp_path):
    world = consortium()
    (tmp_path / "root.key").write_bytes(b"")
    (tmp_path / "anchor.pem").write_bytes(world.anchor.to_text())
    (tmp_path / "status-list.pem").write_bytes(armour_signed(Kind.STATUS_LIST, world.status.signed))
    (tmp_path / "issued.json").write_text(text)
    with pytest.raises(FormatError, match=r"issued\.json is damaged"):
        ConsortiumFolder(tmp_path).credential(world.identities["anna"], NOW)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[1]",
        b"7",
        json.dumps({"code": "CW-300", "what": None, "why": "", "fix": ""}).encode(),
        json.dumps({"code": [], "what": "", "why": "", "fix": ""}).encode(),
    ],
)
def test_a_fooled_worker_cannot_send_an_error_that_its_parent_cannot_tell(body):
    with pytest.raises(_Broken):
        _refusal(body)


def test_a_compressed_file_does_not_say_how_much_memory_it_gets():
    form = SealFormat((4, 1), 64, 1, 1, 2.0**30, b"\x01" * 32, b"\x02" * 32)
    body = zstandard.ZstdCompressor().compress(bytes(2**28))
    head = form.write_key(np.ones((1, 64), dtype=np.uint64))[:5] + b"\x02\x00\x00"
    tracemalloc.start()
    with pytest.raises(FormatError, match="size"):
        form.read_full(head + (16 + len(body)).to_bytes(8, "little") + body)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_what_a_peer_says_of_an_error_cannot_break_out_of_its_line():
    told = from_wire(WireError("CW-500", 'no\n{"level": "info"}', "\x1b[2J\u202egnp", "a\u2028b\x00."))
    assert str(told) == 'CW-500 no\ufffd{"level": "info"}, because \ufffd[2J\ufffdgnp. a\ufffdb\ufffd.'


def test_a_phase_that_nobody_knows_has_a_name():
    assert wire_name(Phase, 99, "PHASE_") == "unknown"
    assert wire_name(Phase, Phase.PHASE_OPEN, "PHASE_") == "open"
    assert headline(StudyStatus(study="a", state=77)).startswith("a: unknown")


def test_a_commit_of_more_events_than_a_database_can_count():
    world, s = consortium(), study("q32")
    commit = Commit.FromString(s.commits["anna"].payload)
    commit.ledger_sequence = 2**64 - 1
    signed = world.sign("anna", Label.COMMIT, commit)
    site = SimpleNamespace(name="anna", member=SimpleNamespace(signing_key=signing_key("anna")))
    client = SimpleNamespace(record=lambda *_: signed)
    with pytest.raises(VerificationError, match="longer than any ledger"):
        check_own_commit(SimpleNamespace(name="trial", client=client, site=site), 1)


def test_the_mutators_themselves_take_anything():
    from fuzz_mutate import octets
    from fuzz_text import der, toml

    rng = Random(5)
    for mutate in (octets, der, toml):
        data = b""
        for _ in range(2000):
            data = mutate(data, rng)[:4000]
