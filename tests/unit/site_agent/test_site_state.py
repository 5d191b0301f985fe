"""What is on disk: the journal's rules, the commands' view, the export."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cipherward.cli.site_service import add_to
from cipherward.clock import SystemClock
from cipherward.database import open_database
from cipherward.errors import ConflictError, UsageError
from cipherward.site_agent.journal.journal import Journal
from cipherward.site_agent.offline import open_offline
from cipherward.site_agent.state.folder import MIGRATIONS
from cipherward.site_agent.state.metadata import metadata
from cipherward.site_agent.status import export_model, status

STUDY = "heart-1"


@pytest.fixture
def finished(world):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    world.open_round(agent, 2)
    agent.participation.train_and_join(2)
    return world, agent


def test_migrations_give_what_the_code_describes(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = open_database(f"sqlite:///{tmp_path}/state.db", MIGRATIONS)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


COLUMNS = st.sampled_from(["round_record", "join_record", "commit_record", "update_digest"])
WRITES = st.lists(st.tuples(st.integers(1, 2), COLUMNS, st.sampled_from([b"a", b"b"])), max_size=12)


@settings(max_examples=40, deadline=None)
@given(WRITES)
def test_what_is_journalled_never_changes(tmp_path_factory, writes):
    folder = tmp_path_factory.mktemp("journal")
    engine = open_database(f"sqlite:///{folder}/state.db", MIGRATIONS)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO studies (study, state, reason, data_set, transcript_round, transcript, model_round,"
            " model_digest) VALUES ('s', 'running', '', '', 0, '', 0, 'x')"
        )
    journal, known = Journal(engine, "s", SystemClock()), {}
    for number, column, value in writes:
        before = known.setdefault((number, column), value)
        if before == value:
            journal.write(number, **{column: value})
        else:
            with pytest.raises(ConflictError):
                journal.write(number, **{column: value})
        assert getattr(journal.entry(number), column) == before
    engine.dispose()


def test_status_shows_study_data_set_and_rounds(finished):
    world, _ = finished
    with open_offline(world.site.folder.root, SystemClock()) as site:
        found = json.loads(json.dumps(status(site, SystemClock())))
    assert found["site"] == "alpha" and found["problem"] == "" and found["certificate_days_left"] >= 99
    [data] = found["data_sets"]
    assert data["name"] == "heart" and data["patients"] == 200 and data["reservations"] == 2
    assert 0 < data["epsilon"] < data["epsilon_ceiling"] == 20.0
    [study] = found["studies"]
    assert [entry["step"] for entry in study["rounds"]] == ["finished", "joined"]
    assert study["rounds"][0]["contributors"] == ["alpha", "beta", "gamma"]


def commands():
    import typer

    app = typer.Typer()
    add_to(app)
    return app


def test_the_commands_print_tables_and_json(finished):
    world, _ = finished
    folder, runner = str(world.site.folder.root), CliRunner()
    for command in (["status"], ["ledger"]):
        plain = runner.invoke(commands(), [*command, "--dir", folder])
        assert plain.exit_code == 0 and "heart" in plain.output, plain.output
        shown = runner.invoke(commands(), [*command, "--dir", folder, "--json"])
        assert shown.exit_code == 0 and json.loads(shown.output)["data_sets"][0]["name"] == "heart"
    found = json.loads(runner.invoke(commands(), ["ledger", "--dir", folder, "--json"]).output)
    assert [event["kind"] for event in found["events"]] == ["register", "reserve", "reserve"]
    [study] = found["studies"]
    assert (study["rounds_paid"], study["rounds_to_come"]) == (2, study["rounds"] - 1)
    assert study["rounds_left"] > 0
    [data] = found["data_sets"]
    assert data["studies"] == [
        {"study": STUDY, "rounds_paid": 2, "lost": 0, "epsilon_alone": data["epsilon"]}
    ]
    assert [item["epsilon"] for item in data["spending"]][-1] == data["epsilon"]
    plain = runner.invoke(commands(), ["ledger", "--dir", folder]).output
    assert (
        "[##---" in plain
        and f"{data['epsilon']:.4g} of 20 spent" in plain
        and "more could be paid for" in plain
    )


def test_spending_is_drawn(finished, tmp_path):
    world, _ = finished
    arguments = ["ledger", "--dir", str(world.site.folder.root), "--plot"]
    for name in ("spending.svg", "spending.html"):
        shown = CliRunner().invoke(commands(), [*arguments, str(tmp_path / name)])
        assert shown.exit_code == 0, shown.output
        drawn = (tmp_path / name).read_text()
        assert "ceiling 20" in drawn and f"{STUDY} round 2: epsilon" in drawn
        assert "http" not in drawn.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded"
    with pytest.raises(UsageError, match="cannot be drawn"):
        CliRunner().invoke(commands(), [*arguments, str(tmp_path / "p.png")], catch_exceptions=False)


def test_policy_check_lists_every_reason(finished, tmp_path):
    from cipherward.crypto.pki.armour import Kind, armour_signed

    world, _ = finished
    manifest = tmp_path / "study.manifest"
    manifest.write_bytes(armour_signed(Kind.MANIFEST, world.coordinator.manifests[0]))
    arguments = ["policy", "check", str(manifest), "--dir", str(world.site.folder.root), "--json"]
    good = CliRunner().invoke(commands(), arguments)
    assert good.exit_code == 0 and json.loads(good.output)["allowed"], good.output
    plain = CliRunner().invoke(commands(), arguments[:-1]).output.splitlines()
    assert plain[0].startswith("Suite shared-key: every site holds the key") and plain[-1].endswith("allowed")
    assert plain[1].startswith("Budget of data set heart: epsilon") and "rounds could be paid for" in plain[1]
    assert plain[2] == "Noise: fedavg, all of it added here. The guarantee rests on nobody else."
    found = json.loads(good.output)
    assert 0 < found["budget"]["spent"] < found["budget"]["after"] < found["budget"]["ceiling"] == 20.0
    assert [one["against"].split(",")[0] for one in found["noise"]["guarantees"]] == ["everybody"]
    policy = world.site.folder.policy
    policy.write_text(policy.read_text().replace("minimum_cohort = 2", "minimum_cohort = 4"))
    bad = CliRunner().invoke(commands(), arguments)
    assert bad.exit_code == 1
    assert [finding["code"] for finding in json.loads(bad.output)["findings"]] == ["cohort-too-small"]


def test_a_model_is_exported_with_its_description_and_not_overwritten(finished, tmp_path):
    world, agent = finished
    with open_offline(world.site.folder.root, SystemClock()) as site:
        out = tmp_path / "model.npz"
        export_model(site, STUDY, out, force=False)
        with pytest.raises(UsageError, match="exists"):
            export_model(site, STUDY, out, force=False)
        export_model(site, STUDY, out, force=True)
        raw = tmp_path / "model.f32"
        export_model(site, STUDY, raw, force=False)
        with pytest.raises(UsageError, match="not known"):
            export_model(site, "other", tmp_path / "o", force=False)
    expected = world.site.models.get(agent.study.row().model_digest)
    with np.load(out) as stored:
        assert (stored["weights"] == expected).all()
    assert (np.frombuffer(raw.read_bytes(), "<f4") == expected).all()
    described = json.loads((tmp_path / "model.npz.json").read_text())
    assert described["round"] == 1 and described["model_digest"] == agent.study.row().model_digest.hex()
