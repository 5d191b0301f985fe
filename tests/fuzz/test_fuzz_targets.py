"""20,000 inputs for all targets together, by Hypothesis: anything but an error of ours is a failure. The same targets
take millions by ``run.py``. And nothing that reads what somebody else wrote may be without a target."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from cryptography.utils import CryptographyDeprecationWarning
from fuzz_all import SPECS
from fuzz_target import HOSTILE, close_all
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from cipherward.coordinator.api.dispatch import RPCS
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.armour import Kind
from cipherward.crypto.suites.registry import PACKAGES, suite

INPUTS = 20_000
RUN = Path(__file__).with_name("run.py")
# A library's opinion of a serial number: what it has been parsed from is refused or not all the same.
pytestmark = pytest.mark.filterwarnings(
    f"ignore::{CryptographyDeprecationWarning.__module__}.CryptographyDeprecationWarning"
)


def shares():
    """Inputs of each target: by weight, at least 50, together at least INPUTS."""
    total = sum(spec.weight for spec in SPECS.values())
    return {name: max(50, -(-INPUTS * spec.weight // total)) for name, spec in SPECS.items()}


SHARES = shares()


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    close_all()


@st.composite
def inputs(draw, target):
    """Mostly something valid, mutated one to four times; else hostile or any bytes."""
    how = draw(st.integers(0, 19))
    if how == 0:
        return draw(st.binary(max_size=300))
    if how == 1:
        return draw(st.sampled_from(HOSTILE))
    data = target.corpus[draw(st.integers(0, len(target.corpus) - 1))]
    rng = Random(draw(st.integers(0, 2**64 - 1)))
    for _ in range(draw(st.integers(0, 4))):
        data = target.mutate(data, rng)
    return data


def fuzz(name):
    target = SPECS[name].target()

    @settings(
        max_examples=SHARES[name],
        deadline=None,
        print_blob=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=inputs(target))
    def once(data):
        note(f"{len(data)} bytes, the first of them {data[:200].hex()}")
        target.once(data)

    once()


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if not spec.slow])
def test_nothing_but_errors_of_ours(name):
    fuzz(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.slow])
def test_nothing_but_errors_of_ours_from_daemons_and_workers(name):
    fuzz(name)


def test_the_inputs_are_as_many_as_we_say():
    assert sum(SHARES.values()) >= INPUTS


# Completeness

SIGNED = (
    *(
        "ANCHOR",
        "REQUEST",
        "CREDENTIAL",
        "STATUS_LIST",
        "MANIFEST",
        "OPERATOR_COMMAND",
        "ROUND_RECORD",
        "JOIN",
    ),
    *("PLAN_RECORD", "COMMIT", "ACKNOWLEDGEMENT", "CLOSE_RECORD", "ABORT_RECORD", "ANSWER", "SUM_CHECK"),
    *("MODEL_REPORT", "RELAY"),
)
SEALED = ("SEAL_SHARED_KEY", "SEAL_SHARE", "SEAL_ANSWER", "SEAL_MODEL")
# Hashed or derived from: no bytes under these labels are read back.
NOT_READ = (
    *("RELAY_KEY", "PUBLIC_POLYNOMIAL", "ATTEMPT_KEY", "ATTEMPT_ERRORS", "ATTEMPT_SHARES", "ANSWER_KEY"),
    *("SUM_CHECK_ORDER", "SHARED_KEY_DIGEST", "MODEL_DIGEST", "FILE_DIGEST", "TASK_DIGEST", "TRANSCRIPT"),
    *("LEDGER", "PATIENT", "FINGERPRINT", "ROOT_KEY"),
)
COVERED = {one for spec in SPECS.values() for one in spec.covers}
OF_OUR_SERVICE = [method for name, method in RPCS.items() if not name.startswith("Health.")]
NEEDED = [
    *(f"rpc {name}" for name in RPCS),
    *sorted({f"reply {method.output_type.name}" for method in OF_OUR_SERVICE}),
    "reply ErrorDetail",
    *(f"label {name}" for name in (*SIGNED, *SEALED)),
    *(f"armour {kind.name}" for kind in Kind),
    *(
        f"chunk {name} {kind}"
        for one in PACKAGES
        for name in suite(one).parameter_sets
        for kind in ("upload", "sum")
    ),
    *(f"chunk {name} key" for name in suite("shared-key").parameter_sets),
    *("toml study.toml", "toml policy.toml", "certificate", "key", "share", "native", "npz"),
]


@pytest.mark.parametrize("what", NEEDED)
def test_what_somebody_else_writes_has_a_target(what):
    assert what in COVERED, f"nothing fuzzes {what}: add a target that covers it to tests/fuzz/kit"


def test_every_label_is_one_of_three_kinds():
    assert sorted((*SIGNED, *SEALED, *NOT_READ)) == sorted(label.name for label in Label)


PARSERS = (
    ".FromString(",
    ".ParseFromString(",
    "tomllib.",
    "json.loads(",
    "load_der",
    "load_pem",
    "zstandard.",
    "zipfile.",
)
READERS = {
    # By module, the targets that give it bytes; "own" is state of the machine's own that nobody else writes.
    "coordinator/api/dispatch.py": "rpc",
    "coordinator/api/inspection_worker.py": "own",
    "coordinator/api/relay.py": "own",
    "coordinator/audit": "own",
    "coordinator/fsck.py": "own",
    "coordinator/rounds/codec.py": "own",
    "coordinator/store": "own",
    "crypto/pki/armour.py": "file",
    "crypto/pki/consortium_folder.py": "file issued.json",
    "crypto/pki/tls.py": "certificate",
    "crypto/shared_key/seal_file.py": "file of SEAL",
    "crypto/signing.py": "record",
    "site_agent/client/errors.py": "error detail",
    "site_agent/daemon": "own",
    "site_agent/fsck.py": "own",
    "site_agent/journal": "own",
    "site_agent/ledger": "own",
    "site_agent/state": "own",
    "site_agent/tasks/medmnist/npz.py": "file of images",
    "site_agent/tasks/medmnist/prepare.py": "file of images",
    "site_agent/training": "own",
    "src/cipherward/cli/study.py": "own",  # a manifest that the coordinator has just accepted
    "src/cipherward/isolated.py": "native worker's error",
    "src/cipherward/settings_text.py": "toml",
}


def test_whatever_parses_is_known_here():
    root = Path(__file__).parents[2]
    unknown = []
    for folder in ("crypto", "coordinator", "site_agent", "src"):
        for path in (root / folder).rglob("*.py"):
            name = path.relative_to(root).as_posix()
            if any(parser in path.read_text() for parser in PARSERS) and not any(
                name.startswith(known) for known in READERS
            ):
                unknown.append(name)
    assert not unknown, "which target gives these modules bytes? Say so in READERS"
    for what in READERS.values():
        assert what == "own" or any(name.startswith(what) for name in SPECS)


# The command


def run(*arguments, **options):
    command = [sys.executable, str(RUN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def test_the_command_counts_its_inputs_and_writes_a_record(tmp_path):
    record = tmp_path / "fuzz.json"
    done = run("--inputs", "700", "--target", "record join", "--json", str(record), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert (found["inputs"], found["crashes"], found["hangs"]) == (700, 0, 0)
    assert 20 < found["peak_rss_mb"] < 1000
    assert 0 < found["accepted"] < 700
    assert not (tmp_path / "fuzz-crashes").exists()


BROKEN = """
import time
from fuzz_target import plain, target

@target("broken", covers=[])
def _():
    def run(data):
        if data[:1] == b"c":
            raise KeyError("a crash")
        if data[:1] == b"h":
            time.sleep(60)
    return run, [b"d1", b"c1", b"h1"], plain
"""


def test_the_command_finds_a_crash_and_a_hang_and_keeps_them(tmp_path):
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "fuzz_all.py").write_text(BROKEN + "from fuzz_target import SPECS\n")
    (tmp_path / "run.py").write_bytes(RUN.read_bytes())
    path = os.pathsep.join([str(RUN.parent / "kit"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "run.py", "--inputs", "60", "--timeout", "0.3", "--json", "r.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["crashes"], found["hangs"], found["failed"]) == (1, 1, 0), done.stdout
    assert sorted(path.read_bytes()[:1] for path in (tmp_path / "fuzz-crashes").iterdir()) == [b"c", b"h"]
