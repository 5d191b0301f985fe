"""A real study of real processes, started as a hospital starts them and watched as its IT would: what both daemons
log, count and say of their health, and what none of it may hold."""

import base64
import binascii
import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cipherward.site_agent.tasks.heart_disease import data

ROOT = Path(__file__).parents[3]
PASSPHRASE = "correct horse battery"
CLI = [sys.executable, "-m", "cipherward.cli.app"]
PARAMETERS = 23
SHORT = 8
"""Bytes of a secret that would be found."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def page(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def value(port, name):
    lines = page(port, "/metrics")[1].splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")]
    assert len(found) <= 1
    return found[0] if found else None


def give_patients(world, name, index):
    """The hospital's data as a file of its own, with patient ids that can be looked for in a log."""
    with data.BUILTIN.open(newline="") as source:
        rows = [row for row in csv.DictReader(source) if row["dataset"] == "Cleveland"][index::2]
    path = world.folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "id": f"MRN-{name}-{7 * int(row['id']) + 90210}"} for row in rows)
    policy = world.folder / name / "policy.toml"
    policy.write_text(re.sub(r'source = ".*"', f'source = "{path}"', policy.read_text()))


def start(world, name, *arguments, port):
    with (world.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*CLI, *arguments, "--metrics-port", str(port)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    world.processes[name] = process
    return process


def start_hub(world, port):
    folder = str(world.folder / "hub")
    return start(world, "hub", "coordinator", "run", "--dir", folder, "--listen", world.address, port=port)


def start_site(world, name, port):
    folder, trainer = str(world.folder / name), str(world.trainer_socket)
    common = ("--coordinator", world.address, "--trainer-socket", trainer, "--json-logs")
    return start(world, name, "site", "run", "--dir", folder, *common, port=port)


def secrets_of(folder):
    """What is in every file that only its owner may read, but for what the member shows to others anyway."""
    for path in folder.rglob("*"):
        if (
            path.is_file()
            and path.stat().st_mode & 0o077 == 0
            and path.suffix not in (".db", ".lock", ".txt")
        ):
            content = path.read_bytes()
            yield content
            if b"-----BEGIN" in content:
                yield base64.b64decode(b"".join(re.findall(rb"^[A-Za-z0-9+/=]+$", content, re.MULTILINE)))


def seen(world, updates):
    """Adds the sites' updates in clear that are on disk now: they are removed at their round's end. True."""
    for name in world.names:
        for path in (world.folder / name).rglob("update.f32"):
            with suppress(FileNotFoundError):
                updates.setdefault(name, set()).add(path.read_bytes())
    return True


def decoded(text):
    """Whatever bytes the text may spell."""
    yield text.encode()
    for token in set(re.findall(r"[0-9A-Fa-f]{16,}", text)):
        for shift in (0, 1):
            part = token[shift : shift + (len(token) - shift) // 2 * 2]
            yield binascii.unhexlify(part)
    for token in set(re.findall(r"[A-Za-z0-9+/_-]{12,}", text)):
        plain = token.replace("-", "+").replace("_", "/")
        for shift in range(4):
            part = plain[shift : shift + (len(plain) - shift) // 4 * 4]
            yield base64.b64decode(part)
    for token in set(re.findall(r"(?:\\\\x[0-9a-f]{2}){4,}", text)):  # as Python shows bytes, in JSON
        yield binascii.unhexlify(token.replace("\\\\x", ""))


def leaks(text, secrets):
    """Pieces of ``text`` that spell ``SHORT`` bytes or more of a secret."""
    windows = set()
    for secret in secrets:
        windows |= {secret[at : at + SHORT] for at in range(len(secret) - SHORT + 1)}
    windows = {window for window in windows if len(set(window)) > 4}  # zeros are no secret
    return [
        piece[at : at + SHORT]
        for piece in decoded(text)
        for at in range(len(piece) - SHORT + 1)
        if piece[at : at + SHORT] in windows
    ]


def documented_events():
    text = (ROOT / "docs/operations.md").read_text()
    return set(re.findall(r"^\| `([^`|]+)` \| (?:info|warning|error)", text, re.MULTILINE))


def test_leaks_are_found():
    secret = bytes(range(130, 194))
    for text in (
        f"key={secret[3:20].hex()}",
        f"x {base64.b64encode(secret[5:40]).decode()} y",
        f"x{base64.urlsafe_b64encode(secret[:31]).decode()}",
        json.dumps({"error": repr(secret[:32])}),
    ):
        assert leaks(text, [secret]), text
    assert not leaks("nothing of it here: 0123456789abcdef0123456789abcdef", [secret])


@pytest.mark.slow
def test_a_limit_is_waited_out_and_no_study_fails_by_it(make_consortium):
    """A coordinator that lets everybody call each RPC once, and then once a second."""
    world = make_consortium("alpha", "beta")
    world._start("hub", "run_strict_coordinator.py", str(world.folder / "hub"), world.address)
    world.start_study(world.manifest("heart-1", suite="quorum", rounds=1))
    for name in world.names:
        world.start_site(name)
    world.wait(*world.names)
    for name in world.names:
        status = world.status(name, "heart-1")
        assert status["state"] == "finished" and status["model_round"] == 1
        entries = [json.loads(line) for line in world.log(name).splitlines()]
        waited = [e for e in entries if "the limit per_second of" in e.get("reason", "") + e.get("error", "")]
        assert waited and {e["event"] for e in waited} <= {"waiting", "not connected"}, waited
        assert not [e for e in entries if e["level"] == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["shared-key", "quorum"])
def test_logs_metrics_and_health_of_a_real_study(make_consortium, suite):
    world = make_consortium("alpha", "beta")
    for index, name in enumerate(world.names):
        give_patients(world, name, index)
    ports = {name: free_port() for name in ("hub", "alpha", "beta")}
    start_site(world, "alpha", ports["alpha"])
    world.wait_for(lambda: "not connected" in world.log("alpha"), "a try to connect")
    assert value(ports["alpha"], "cipherward_site_connected") == 0
    assert value(ports["alpha"], "cipherward_site_connects_failed_total") >= 1
    start_hub(world, ports["hub"])
    world.start_study(world.manifest("heart-1", suite=suite, rounds=2))
    start_site(world, "beta", ports["beta"])
    updates = {}
    for name in world.names:
        world.wait_for(
            lambda n=name: seen(world, updates) and "study finished" in world.log(n), "the end", 90
        )
    assert {len(found) for found in updates.values()} == {2}, "each site's update of each round was seen"
    pages = ""
    for name, port in ports.items():
        for path in ("/healthz", "/readyz"):
            status, text = page(port, path)
            assert status == 200, (name, path, text)
            pages += text
        pages += page(port, "/metrics")[1]
    site = ports["alpha"]
    assert value(site, "cipherward_site_connected") == 1
    assert value(site, "cipherward_site_rounds_finished_total") == 2
    assert value(site, "cipherward_site_training_seconds_count") == 2
    assert value(site, "cipherward_site_training_seconds_sum") > 0
    spent = value(site, 'cipherward_site_epsilon_spent{data_set="heart"}')
    left = value(site, 'cipherward_site_epsilon_left{data_set="heart"}')
    assert 0 < spent < 50 and spent + left == pytest.approx(50)
    assert value(site, 'cipherward_site_reservations_lost{data_set="heart"}') == 0
    assert value(site, "cipherward_site_credential_days") == 99
    assert value(site, "cipherward_site_free_disk_bytes") > 0
    assert value(site, "cipherward_site_ready") == 1
    assert value(site, "cipherward_site_last_round_timestamp_seconds") > 1e9
    assert 'study="heart-1"' not in page(site, "/metrics")[1], "nothing is left of a study that is over"
    assert value(ports["hub"], 'cipherward_rounds_total{outcome="released"}') == 2

    # What makes a site not ready, and ready again; its supervisor does not kill it for that.
    policy = world.folder / "alpha/policy.toml"
    good = policy.read_text()
    policy.write_text("nonsense")
    world.wait_for(lambda: page(site, "/readyz")[0] == 503, "not ready")
    assert list(json.loads(page(site, "/readyz")[1])["failed"]) == ["policy"]
    assert page(site, "/healthz")[0] == 200
    policy.write_text(good)
    world.wait_for(lambda: page(site, "/readyz")[0] == 200, "ready again")
    for name in ("alpha", "beta", "hub"):
        world.processes[name].terminate()
    for name in ("alpha", "beta", "hub"):
        assert world.processes[name].wait(15) == 0, world.log(name)
    _check_logs(world, pages, set().union(*updates.values()))


def _check_logs(world, pages, updates):
    events, documented = Counter(), documented_events()
    for name in ("hub", "alpha", "beta"):
        for line in world.log(name).splitlines():
            if line.startswith("listening on"):
                continue
            entry = json.loads(line)
            assert {"event", "level", "timestamp"} <= entry.keys(), line
            events[entry["event"]] += 1
    assert events.keys() <= documented, events.keys() - documented
    assert events["round finished"] == 4 and events["study moved"] >= 4
    logged = "".join(world.log(name) for name in ("hub", "alpha", "beta")) + pages
    assert PASSPHRASE not in logged
    assert "MRN-" not in logged
    secrets = [secret for name in ("hub", "alpha", "beta") for secret in secrets_of(world.folder / name)]
    secrets += updates
    assert sum(map(len, secrets)) > 300
    found = leaks(logged, secrets)
    assert not found, found[:3]
    models = list((world.folder / "alpha/models").rglob("*"))
    assert models
    vectors = [path.read_bytes()[-4 * PARAMETERS :] for path in models if path.is_file()]
    for vector in [*vectors, *(update[: 4 * PARAMETERS] for update in updates)]:
        for number in np.frombuffer(vector, "<f4"):
            if number:
                assert f"{number:.6g}" not in logged


def cpu_seconds(pid):
    """Of the process and all its descendants, those that have ended among them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = {child for path in threads for child in path.read_text().split()} | set(children)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))


def resident_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.mark.slow
def test_idle_daemons_take_hardly_any_cpu(make_consortium, capsys):
    """Connected, in a study that waits for another site, and looked at by monitoring every 15 s."""
    world = make_consortium("alpha", "beta")
    ports = {name: free_port() for name in ("hub", "alpha")}
    processes = {"hub": start_hub(world, ports["hub"])}
    world.start_study(world.manifest("heart-1", rounds=1, join_window=600))
    folder = str(world.folder / "alpha")
    common = ("--coordinator", world.address, "--json-logs")  # with a trainer of its own
    processes["alpha"] = start(world, "alpha", "site", "run", "--dir", folder, *common, port=ports["alpha"])
    world.wait_for(lambda: "joined" in world.log("alpha"), "the join")
    time.sleep(2)
    before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
    began = time.monotonic()
    for _ in range(4):
        time.sleep(15)
        for port in ports.values():
            assert page(port, "/metrics")[0] == page(port, "/readyz")[0] == 200
    seconds = time.monotonic() - began
    used = {name: (cpu_seconds(process.pid) - before[name]) / seconds for name, process in processes.items()}
    memory = {name: resident_bytes(process.pid) / 1e6 for name, process in processes.items()}
    with capsys.disabled():
        for name in processes:
            print(
                f"\nidle {name}: {100 * used[name]:.2f} % CPU over {seconds:.0f} s, {memory[name]:.0f} MB",
                end="",
            )
    assert used["alpha"] <= 0.01 and used["hub"] <= 0.02, used
    assert memory["alpha"] <= 150, memory
