"""What others wrote is shown as it is: no styles, no terminal sequences, no second line, nothing cut short."""

from cipherward.cli import audit_view, site_view, study_view
from cipherward.cli.terminal import console
from cipherward.coordinator.daemon.folder import database_url
from cipherward.coordinator.rounds.state import Life, Phase, State
from cipherward.coordinator.store.database import Store
from cipherward.coordinator.store.studies import StudyRow
from cipherward.crypto.audit import StudyAudit
from cipherward.crypto.pki.member_files import read_anchor
from cipherward.proto.v1.coordinator_pb2 import RoundStatus, SiteStatus, StudyState, StudyStatus

HOSTILE = "[/x] [red]no[/] :smile: \x1b[2J\nround 1: all is well \u202e"
SHOWN = "[/x] [red]no[/] :smile: \ufffd[2J\ufffdround 1: all is well \ufffd"


def test_a_sites_status(capsys):
    entry = {
        "round": 1,
        "step": HOSTILE,
        "contributors": [],
        "loss": None,
        "accuracy": None,
        "skipped": HOSTILE,
    }
    study = {
        "study": "heart", "state": "aborted", "model_round": 0, "planned_rounds": 5, "reason": HOSTILE,
        "findings": [{"code": "x", "line": HOSTILE}], "evaluations": [],
        "rounds": [entry | {"noise_promised": None, "noise_realised": None}],
    }  # fmt: skip
    found = {
        "identity": "spiffe://heart/site/basel", "problem": HOSTILE, "warnings": [HOSTILE], "studies": [study],
        "data_sets": [], "incidents": [{"study": "heart", "round": 1, "message": HOSTILE}],
    }  # fmt: skip
    site_view.print_status(found)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 5  # and, in cells, on several lines
    assert "\x1b" not in out and "\u202e" not in out


def test_a_name_longer_than_its_column_is_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "cardiology-ward-3-and-outpatients-2019-to-2026"
    item = dict.fromkeys(("version", "patients", "reservations", "lost", "delta"), 1)
    site_view._data_sets(console(), [item | {"name": name, "epsilon": 1.0, "epsilon_ceiling": 3.0}])
    cells = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    ]
    assert "".join(cells) == name


def test_an_operators_view(capsys):
    status = StudyStatus(
        study="heart",
        state=StudyState.STUDY_STATE_ABORTED,
        reason=HOSTILE,
        suite=HOSTILE,
        history=[RoundStatus(round=1, aborted=True, reason=HOSTILE)],
        sites=[SiteStatus(name="basel", problem=HOSTILE)],
    )
    study_view.print_status(console(), status)
    with study_view.Watched(console()) as watched:
        watched.show(status)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 6
    assert "\x1b" not in out and "\u202e" not in out


def test_a_coordinators_status(cli, tmp_path):
    """The reason that an operator gave for aborting a study."""
    store = Store(database_url(tmp_path))
    ended = State(1, Phase.OPEN, 0.0, b"m" * 32, life=Life.ABORTED, reason=f"aborted by olga: {HOSTILE}")
    with store.transaction() as t:
        t.studies.create(StudyRow("heart", ended, b"t" * 32, "w"))
    store.close()
    status, out, _ = cli.run("coordinator", "status", "--dir", tmp_path)
    assert (status, out.count("\n")) == (0, 2)
    assert out.endswith(f"0 closed, 0 aborted, aborted by olga: {SHOWN}\n")
    _, out, _ = cli.run("coordinator", "status", "--dir", tmp_path, "--json")
    assert out.isascii() and (out.count("\n"), out.count("\x1b")) == (1, 0)


def test_an_audit_of_a_tampered_store(capsys, here):
    """A study's or a site's name in a coordinator's own database is whatever the coordinator writes there."""
    audit = StudyAudit(
        HOSTILE, left_out=[(1, HOSTILE)], not_reported=[(1, HOSTILE)], not_added={HOSTILE: [1]}
    )
    audit_view.print_audits([audit], read_anchor(here / "consortium"), compared=True)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 4
    assert "\x1b" not in out and "\u202e" not in out
