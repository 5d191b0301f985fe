"""``audit verify`` of a site's folder: three rounds of a real site, then one thing changed at a time."""

import json
import shutil
import sqlite3

from cipherward.cli.app import main
from cipherward.crypto.labels import Label
from cipherward.proto.v1 import coordinator_pb2 as cp
from cipherward.proto.v1 import round_pb2 as rp
from cipherward.proto.v1.common_pb2 import Signed


def audit(capsys, folder):
    capsys.readouterr()
    status = main(["audit", "verify", "--dir", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["right"] else 1)
    return found["studies"][0]


def test_a_sites_own_records(world, tmp_path, capsys):
    agent = world.admit()
    world.to_close(agent, 1)
    agent.release.catch_up(1, 1)
    world.open_round(agent, 2)
    world.abort(agent, 2)
    agent.release.catch_up(2, 2)
    updates = world.to_close(agent, 3)
    del updates["alpha"]
    world.close(agent, 3, updates)
    agent.release.catch_up(3, 3)
    world.open_round(agent, 4)
    world.site.engine.dispose()
    folder = world.site.folder.root
    study = audit(capsys, folder)
    assert (study["closed_rounds"], study["aborted_rounds"], study["commits"]) == (2, 1, 2)
    assert study["left_out"] == [{"round": 3, "site": "alpha"}] and study["transcript_round"] == 3
    assert study["sums_not_added_up"][0]["rounds"] == [1, 3]

    def changed(*statements):
        copy = tmp_path / "changed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        with sqlite3.connect(copy / "state.db") as connection:
            for statement, *values in statements:
                assert connection.execute(statement, values).rowcount == 1, statement
        wrong = audit(capsys, copy)["wrong"]
        return wrong["round"], wrong["site"], wrong["what"]

    close = world.coordinator.records[1, cp.RECORD_KIND_CLOSE]
    forged = world.sign("beta", Label.CLOSE_RECORD, rp.CloseRecord.FromString(close.payload))
    plan = Signed.FromString(world.coordinator.records[1, cp.RECORD_KIND_PLAN].SerializeToString())
    plan.payload = plan.payload[:-1]
    put = "UPDATE rounds SET {} = ? WHERE round = 1"
    for statements, expected in (
        (
            [(put.format("closing_record"), forged.SerializeToString())],
            (1, None, "the signature on a close record"),
        ),
        ([(put.format("closing_record"), b"x")], (1, None, "a record cannot be read")),
        (
            [(put.format("plan_record"), plan.SerializeToString())],
            (1, None, "the signature on a plan record"),
        ),
        ([("DELETE FROM rounds WHERE round = 2",)], (2, None, "round 3 came instead of it")),
        ([("UPDATE rounds SET closing_record = NULL WHERE round = 2",)], (2, None, "round 3 follows")),
        (
            [(put.format("commit_record"), None)],
            (1, "alpha", "counts a commit that the journal does not have"),
        ),
        (
            [(put.format("ciphertext_root"), bytes(32))],
            (1, "alpha", "it committed another attempt, or other roots"),
        ),
        ([("UPDATE studies SET transcript = zeroblob(32)",)], (3, None, "the head of the transcript")),
    ):
        number, site, what = changed(*statements)
        assert (number, site) == expected[:2] and expected[2] in what, (expected, number, site, what)
