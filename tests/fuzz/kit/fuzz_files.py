"""Files: what people mail to each other, what admins write, keys and certificates."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fuzz_mutate import LOW_ORDER, Envelope, Mutator, octets, several, sized
from fuzz_records import ENVELOPES, check_manifest_of, manifests, void
from fuzz_target import plain, target
from fuzz_text import der, in_blocks, signed_der, toml
from fuzz_world import NOW, PARAMETERS, SITES, consortium, sealing_key, signing_key, study, tls_key

from cipherward.clock import ManualClock
from cipherward.crypto import merkle
from cipherward.crypto.inclusion import check_chunk, check_proof, proof_text, prove_chunk, read_proof
from cipherward.crypto.labels import Label
from cipherward.crypto.manifest import build_manifest
from cipherward.crypto.pki import fingerprint, member_files, root_key, tls
from cipherward.crypto.pki.anchor import Anchor
from cipherward.crypto.pki.armour import Kind, armour_signed, unarmour_signed
from cipherward.crypto.pki.consortium_folder import INDEX, ROOT_KEY, ConsortiumFolder
from cipherward.crypto.pki.credentials import read_credential
from cipherward.crypto.pki.peers import PeerVerifier
from cipherward.crypto.pki.requests import verify_request
from cipherward.crypto.pki.status_list import verify_status_list
from cipherward.crypto.sealing import SealingKey
from cipherward.crypto.sealing_keys import check_public
from cipherward.crypto.signing import SigningKey
from cipherward.crypto.study_file import StudyFile
from cipherward.proto.v1.audit_pb2 import InclusionProof
from cipherward.site_agent.policy.model import load as load_policy

REPOSITORY = Path(__file__).parents[3]
LABELS = {
    Kind.ANCHOR: Label.ANCHOR,
    Kind.REQUEST: Label.REQUEST,
    Kind.CREDENTIAL: Label.CREDENTIAL,
    Kind.STATUS_LIST: Label.STATUS_LIST,
    Kind.MANIFEST: Label.MANIFEST,
}


def _armoured():
    mutator = Mutator(consortium().keys)

    def content(kind, data, rng):
        label = LABELS.get(kind)
        return (
            octets(data, rng)
            if label is None
            else mutator.signed(data, Envelope(label, ENVELOPES[label]), rng)
        )

    return in_blocks(content)


@target("file anchor", covers=["armour ANCHOR"])
def _anchor():
    world = consortium()
    return lambda data: void(Anchor.from_text(data).fingerprint), [world.anchor.to_text()], _armoured()


@target("file request", covers=["armour REQUEST"])
def _request():
    world = consortium()
    seeds = [armour_signed(Kind.REQUEST, one) for one in world.requests.values()]
    return lambda data: void(verify_request(unarmour_signed(Kind.REQUEST, data))), seeds, _armoured()


@target("file credential", covers=["armour CREDENTIAL", "armour ANCHOR", "armour STATUS_LIST"])
def _credential():
    """What `site init --credential` installs, and the credential alone, as it lies in a member's folder."""
    world = consortium()
    bundles = [member_files.bundle(world.anchor, one, world.newer) for one in world.credentials.values()]
    alone = [armour_signed(Kind.CREDENTIAL, one.signed) for one in world.credentials.values()]

    def run(data):
        if data.count(b"BEGIN") == 1:
            read_credential(unarmour_signed(Kind.CREDENTIAL, data), world.anchor)
        else:
            credential, status = member_files._read_bundle(data, world.anchor)
            credential.check(NOW, status)

    return run, bundles + alone, _armoured()


@target("file status list", covers=["armour STATUS_LIST"])
def _status():
    world = consortium()
    seeds = [armour_signed(Kind.STATUS_LIST, one.signed) for one in (world.status, world.newer)]
    return (
        lambda data: void(verify_status_list(unarmour_signed(Kind.STATUS_LIST, data), world.anchor)),
        seeds,
        _armoured(),
    )


@target("file manifest", covers=["armour MANIFEST"])
def _manifest():
    return (
        lambda data: check_manifest_of(unarmour_signed(Kind.MANIFEST, data)),
        [armour_signed(Kind.MANIFEST, one) for one in manifests()],
        _armoured(),
    )


@target("file inclusion proof", covers=["armour INCLUSION_PROOF"], weight=15)
def _proof():
    """What `audit prove` wrote and somebody mailed: records of a whole round, believed under the anchor alone."""
    world, s = consortium(), study("q32")
    chunks = [merkle.leaf_hash(one) for one in s.chunks["anna"]]
    proof = InclusionProof(
        manifests=[s.signed_manifest],
        round_record=s.opening,
        plan_record=s.signed_plan,
        close_record=s.signed_close,
        site="anna",
        chunk=prove_chunk(chunks, 1),
        after=[bytes(32)],
    )
    places = {"manifests": Label.MANIFEST, "round_record": Label.ROUND_RECORD}
    places |= {"plan_record": Label.PLAN_RECORD, "close_record": Label.CLOSE_RECORD}
    inside = {("InclusionProof", name): Envelope(label, ENVELOPES[label]) for name, label in places.items()}
    mutator = Mutator(world.keys, inside)

    def content(_kind, data, rng):
        return mutator.message(data, InclusionProof.DESCRIPTOR, rng)

    def run(data):
        proven = check_proof(read_proof(data), world.anchor)
        check_chunk(proven, s.chunks["anna"][1])

    return run, [proof_text(proof)], in_blocks(content)


@target("file root key", covers=["armour ROOT_KEY"], weight=5)
def _root_key():
    # The real derivation takes 128 MiB and half a second, whatever the bytes: not at every input.
    passphrase = "five random words are enough"
    cheap = mock.patch.object(root_key, "_LOG2_N", 2)
    with cheap:
        seed = consortium().root.to_text(passphrase)

    def run(data):
        with cheap:
            root_key.RootKey.from_text(data, passphrase).require_anchor(consortium().anchor)

    return run, [seed], _armoured()


@target("file issued.json", covers=["json issued.json"], weight=3)
def _index():
    folder = _folder("index")
    line = (
        b'[{"identity": "spiffe://heart/site/anna", "serial": 5, "issued_at": 1, "expires_at": 2000000000,'
        b' "fingerprint": "00", "file": "site-anna.pem"}]'
    )
    (folder / ROOT_KEY).write_bytes(b"")
    (folder / member_files.ANCHOR).write_bytes(consortium().anchor.to_text())
    (folder / member_files.STATUS_LIST).write_bytes(
        armour_signed(Kind.STATUS_LIST, consortium().status.signed)
    )
    files = ConsortiumFolder(folder)

    def run(data):
        (folder / INDEX).write_bytes(data)
        for role in ("site", "operator"):
            files.members(role, NOW)
        files.credential(consortium().identities["anna"], NOW)

    values = (b"null", b"-1", b"1e999", b"NaN", b'"x"', b"[]", b"{}", b"9" * 5000, b'"../../x"', b'"\\u0000"')

    def mutate(data, rng):
        tokens = data.replace(b",", b"\n").replace(b": ", b"\n").split(b"\n")
        return data.replace(rng.choice(tokens) or b"{", rng.choice(values), 1)

    return run, [line, b"[]"], several(mutate, mutate, octets)


@target("text fingerprint", weight=2)
def _fingerprint():
    seeds = [fingerprint.show(bytes(range(32))).encode(), bytes(range(32)).hex().encode()]
    return lambda data: fingerprint.check(bytes(32), data.decode(errors="replace"), "file"), seeds, plain


# Certificates and keys


@target("certificate DER", covers=["certificate"], weight=25)
def _certificate():
    world = consortium()

    def run(data):
        certificate = tls.load_certificate(data)
        identity = tls.check_leaf(certificate, world.anchor.root)
        tls.check_time(certificate, NOW, str(identity))
        tls.certificate_key_digest(certificate)
        tls.to_pem(certificate)

    seeds = [one.certificate.public_bytes(Encoding.DER) for one in world.credentials.values()]
    return run, seeds, signed_der([tls_key("root")])


@target("certificate of a caller", covers=["certificate"], weight=15)
def _peer():
    """What gRPC gives of a caller's certificate: PEM, and the identity that it found in it."""
    world = consortium()
    clock = ManualClock(NOW)
    resign = signed_der([tls_key("root")])

    def run(data):
        verifier = PeerVerifier(world.anchor, world.newer, clock)
        uri, _, certificate = data.partition(b"\n")
        verifier.verify({"x509_pem_cert": [certificate], "peer_spiffe_id": [uri]})

    def mutate(data, rng):
        uri, _, text = data.partition(b"\n")
        if rng.random() < 0.1:
            return octets(uri, rng).replace(b"\n", b"") + b"\n" + text
        try:
            inner = tls.load_certificate_pem(text).public_bytes(Encoding.DER)
        except Exception:
            return octets(data, rng)
        changed = resign(inner, rng)
        if rng.random() < 0.1:
            return uri + b"\n" + octets(text, rng)
        return uri + b"\n" + _pem(changed)

    seeds = [
        str(one.identity).encode() + b"\n" + tls.to_pem(one.certificate) for one in world.credentials.values()
    ]
    return run, seeds, mutate


def _pem(content: bytes) -> bytes:
    import base64

    body = base64.b64encode(content)
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


@target("certificate of the root", covers=["certificate"], weight=10)
def _root():
    world = consortium()

    def run(data):
        tls.check_root(data, "heart")

    return run, [world.anchor.root.public_bytes(Encoding.DER)], signed_der([tls_key("root")])


@target("certificate request", covers=["certificate"], weight=15)
def _csr():
    world = consortium()
    identity = world.identities["anna"]
    seeds = [tls.make_csr(tls_key(name), identity) for name in SITES]
    return (
        lambda data: void(tls.read_csr(data, identity)),
        seeds,
        signed_der([tls_key(name) for name in SITES]),
    )


@target("key TLS", covers=["key"], weight=5)
def _tls_key():
    pem = tls.key_to_pem(tls_key("anna"))
    public = tls_key("anna").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def mutate(data, rng):
        import base64

        lines = data.split(b"\n")
        if rng.random() < 0.3 or len(lines) < 3:
            return octets(data, rng)
        try:
            inner = base64.b64decode(b"".join(lines[1:-2]))
        except ValueError:
            return octets(data, rng)
        body = base64.b64encode(der(inner, rng))
        rows = [body[at : at + 64] for at in range(0, len(body), 64)]
        return b"\n".join([lines[0], *rows, lines[-2], b""])

    return lambda data: void(tls.key_digest(tls.key_from_pem(data).public_key())), [pem, public], mutate


@target("key signing", covers=["key"], weight=2)
def _signing_key():
    return (
        lambda data: void(SigningKey.from_bytes(data).public()),
        [signing_key("anna").to_bytes()],
        sized_key,
    )


@target("key sealing, secret", covers=["key"], weight=3)
def _sealing_key():
    return (
        lambda data: void(SealingKey.from_bytes(data).public()),
        [sealing_key("anna").to_bytes()],
        sized_key,
    )


@target("key sealing, public", covers=["key"], weight=15)
def _public_key():
    """What somebody joins with, and then: anything that passes must be a key to which others can seal."""
    from cipherward.crypto.sealing import seal

    seeds = [sealing_key(name).public() for name in SITES]
    seeds += [seeds[0][:-32] + one for one in LOW_ORDER] + [b"\xff" * 1184 + seeds[0][-32:]]

    def run(data):
        check_public(data)
        seal(data, b"x", Label.SEAL_SHARE)

    return run, seeds, several(octets, sized_key)


def sized_key(data, rng):
    """Mostly of the right size."""
    if rng.random() < 0.3:
        return sized(data, rng)
    return octets(data, rng)[: len(data)].ljust(len(data), b"\x00")


# What admins write

EXAMPLES = ("study.toml", "dp-fedsgd.toml")


@target("toml study", covers=["toml study.toml"], weight=20)
def _study():
    world, first = consortium(), study("q32").trust
    examples = [(REPOSITORY / "examples" / "heart" / name).read_bytes() for name in EXAMPLES]
    for place, name in enumerate((b"cleveland", b"hungary", b"switzerland", b"va-long-beach")):
        own = b'"' + SITES[place].encode() + b'"'
        examples = [example.replace(b'"' + name + b'"', own) for example in examples]

    def run(data):
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        file = StudyFile.parse(text)
        build_manifest(
            file,
            anchor=world.anchor,
            sites=[world.credentials[name] for name in SITES],
            coordinator=world.credentials["hub"],
            revocations=world.status,
            task_code_digest=bytes(32),
            initial_weights_digest=bytes(32),
            parameter_count=PARAMETERS,
            previous=first if "trial-q32" in text else None,
            now=NOW,
        )

    more = (
        b'[study]\nname = "a"\nrounds = 3\ncoordinator = "hub"\n[task]\nname = "heart-disease"\n[training]\n'
    )
    more += b"sampling_rate = 0.1\nsteps = 3\nlearning_rate = 0.1\nbatch_divisor = 8.0\ndp_disabled = true\n"
    more += b"[metrics]\nloss_bound = 2.0\nscale = 100.0\n[cohort]\n"
    return run, [*examples, more], toml


@target("toml study file", covers=["toml study.toml"], weight=3)
def _study_file():
    path = _folder("study") / "study.toml"

    def run(data):
        path.write_bytes(data)
        StudyFile.load(path)

    examples = [(REPOSITORY / "examples" / "heart" / name).read_bytes() for name in EXAMPLES]
    return run, examples, several(toml, octets)


@target("toml policy", covers=["toml policy.toml"], weight=15)
def _policy():
    from cipherward.site_agent.policy.template import TEMPLATE

    path = _folder("policy") / "policy.toml"
    full = b"""minimum_cohort = 3
minimum_threshold = 3
require_dp = true
allowed_suites = ["quorum"]
[allowed_tasks]
heart-disease = "installed"
[datasets.cleveland]
source = "heart.csv"
task = "heart-disease"
epsilon_ceiling = 3.0
delta = 1e-4
max_lost_reservations = 5
"""

    def run(data):
        path.write_bytes(data)
        load_policy(path).dataset("cleveland")

    return run, [full, TEMPLATE.encode() if isinstance(TEMPLATE, str) else full], several(toml, toml, octets)


def _folder(name: str) -> Path:
    """In memory where there is such a place: a million small files need no disk."""
    import atexit
    import shutil
    import tempfile

    base = Path("/dev/shm")
    made = Path(
        tempfile.mkdtemp(prefix=f"cipherward-fuzz-{name}-", dir=base if os.access(base, os.W_OK) else None)
    )
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
