"""Inclusion proofs: made from what a real coordinator stored, checked with the anchor alone; no part of one can be
changed, and no file, whatever is in it, ends otherwise than in an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cipherward.cli.app import main
from cipherward.crypto.inclusion import check_proof, proof_text, read_proof
from cipherward.crypto.labels import Label
from cipherward.crypto.pki.armour import Kind, armour
from cipherward.crypto.pki.root_key import RootKey
from cipherward.crypto.signing import record_digest
from cipherward.crypto.transcript import transcript_next, transcript_start
from cipherward.errors import CipherwardError, VerificationError
from cipherward.proto.v1 import coordinator_pb2 as pb
from cipherward.proto.v1.audit_pb2 import InclusionProof

SITES = ("anna", "bert", "cora", "dora")


@pytest.fixture
async def hub(world: Any, updates: Any) -> dict[str, Any]:
    """Two closed rounds, and the transcript after each as the sites compute it."""
    async with world.running(world.folder, keep_rounds=1) as address:
        sites = await world.started(address)
        transcript = transcript_start("trial", sites[0].trust.digest)
        heads = [transcript]
        for number in (1, 2):
            await world.each(site.join(number) for site in sites)
            await sites[0].until(lambda s, number=number: s.round == number and s.plan_digest)
            await world.each(site.contribute(number, updates[i][1]) for i, site in enumerate(sites))
            await sites[0].until(lambda s, number=number: s.round == number and s.close_digest)
            closed = await sites[0].record(number, pb.RECORD_KIND_CLOSE)
            transcript = transcript_next(transcript, record_digest(Label.CLOSE_RECORD, closed))
            heads.append(transcript)
            await world.each(site.report(number, bytes([number]) * 32) for site in sites)
    anchor = world.folder.parent / "anchor.pem"
    anchor.write_bytes(world.consortium.anchor.to_text())
    return {"folder": world.folder, "anchor": anchor, "heads": heads, "world": world, "chunks": updates[1][1]}


def prove(hub: dict[str, Any], out: Path, *options: str, number: int = 2, site: str = "bert") -> int:
    where = ["--dir", str(hub["folder"]), "--study", "trial", "--round", str(number), "--site", site]
    return main(["audit", "prove", *where, "--out", str(out), *options])


async def test_a_proof_is_checked_with_the_anchor_alone(
    hub: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    out, chunk = tmp_path / "proof.pem", tmp_path / "chunk"
    anchor = ["--anchor", str(hub["anchor"])]
    assert prove(hub, out, "--chunk", "1") == 0
    hub["folder"].rename(tmp_path / "away")
    fingerprint = hub["world"].consortium.anchor.fingerprint.hex()
    capsys.readouterr()
    assert main(["audit", "check", str(out), *anchor, "--fingerprint", fingerprint, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["study"], found["round"], found["site"], found["chunk"]) == ("trial", 2, "bert", 1)
    assert found["contributors"] == list(SITES)
    assert found["transcript"] == found["head"] == hub["heads"][2].hex() and found["head_round"] == 2
    for content, status in ((hub["chunks"][1], 0), (hub["chunks"][0], 1)):
        chunk.write_bytes(content)
        assert main(["audit", "check", str(out), *anchor, "--update", str(chunk)]) == status
    assert main(["audit", "check", str(out), *anchor, "--fingerprint", "00" * 32]) == 1
    other = tmp_path / "other.pem"
    other.write_bytes(RootKey.generate().make_anchor("heart", 1.0).to_text())
    assert main(["audit", "check", str(out), "--anchor", str(other)]) == 1
    shown = capsys.readouterr()
    assert (
        "bert's update (attempt 1) is in the sum of 4" in shown.out and "it is the given file's" in shown.out
    )
    assert "these bytes are not chunk 1 of bert's update" in shown.err


async def test_an_older_round_leads_to_the_head(hub: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "proof.pem"
    assert prove(hub, out, number=1) == 0
    capsys.readouterr()
    assert main(["audit", "check", str(out), "--anchor", str(hub["anchor"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["transcript"], found["head"], found["head_round"], found["chunk"]) == (
        hub["heads"][1].hex(),
        hub["heads"][2].hex(),
        2,
        None,
    )
    assert prove(hub, out, "--chunk", "0", number=1) == 2 and "no longer kept" in capsys.readouterr().err
    assert prove(hub, out, "--chunk", "9999") == 2 and "has no chunk 9999" in capsys.readouterr().err
    assert prove(hub, out, number=3) == 2 and "round 3 of trial is not closed" in capsys.readouterr().err
    assert (
        prove(hub, out, site="eve") == 1 and "'eve' is not in the sum of round 2" in capsys.readouterr().err
    )


CHANGES: dict[str, Callable[[InclusionProof], object]] = {
    "another site": lambda p: setattr(p, "site", "anna"),
    "a site of no study": lambda p: setattr(p, "site", "eve"),
    "another chunk": lambda p: setattr(p.chunk, "index", 0),
    "a chunk behind the last": lambda p: setattr(p.chunk, "index", 2**31),
    "another leaf": lambda p: setattr(p.chunk, "leaf_hash", bytes(32)),
    "a short leaf": lambda p: setattr(p.chunk, "leaf_hash", b""),
    "a shorter path": lambda p: p.chunk.path.pop(),
    "another history before": lambda p: p.before.__setitem__(0, bytes(32)),
    "no history before": lambda p: p.before.pop(),
    "a short digest": lambda p: p.after.append(b"x"),
    "no manifest": lambda p: p.manifests.pop(),
    "a manifest twice": lambda p: p.manifests.append(p.manifests[0]),
    "another plan": lambda p: p.plan_record.CopyFrom(p.round_record),
    "no close record": lambda p: p.ClearField("close_record"),
    "a close record of others": lambda p: setattr(p.close_record, "signature", bytes(64)),
    "a round record of others": lambda p: setattr(p.round_record, "signature", bytes(64)),
}


async def test_no_part_of_it_can_be_changed(hub: dict[str, Any], tmp_path: Path) -> None:
    out, anchor = tmp_path / "proof.pem", hub["world"].consortium.anchor
    assert prove(hub, out, "--chunk", "1") == 0
    whole = read_proof(out.read_bytes())
    proven = check_proof(whole, anchor)
    for what, change in CHANGES.items():
        proof = InclusionProof.FromString(whole.SerializeToString())
        change(proof)
        with pytest.raises(VerificationError):
            check_proof(read_proof(proof_text(proof)), anchor)
            pytest.fail(what)
    # What comes after leads to another head, which no site shows.
    whole.after.append(bytes(32))
    assert check_proof(whole, anchor).head != proven.head

    text = out.read_bytes()
    raw = whole.SerializeToString()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def hostile(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            content = bytearray(raw)
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            cut = data.draw(st.integers(0, len(content)))
            given_text = armour(
                Kind.INCLUSION_PROOF, bytes(content[:cut] if data.draw(st.booleans()) else content)
            )
        else:
            given_text = data.draw(st.binary(max_size=200)) + text[: data.draw(st.integers(0, len(text)))]
        try:
            found = check_proof(read_proof(given_text), anchor)
        except CipherwardError:
            return
        assert (found.study, found.round) == ("trial", 2)
        assert found.contribution.commit.payload in whole.close_record.payload

    hostile()


async def test_a_round_under_a_newer_manifest(world: Any, updates: Any, tmp_path: Path, capsys: Any) -> None:
    async with world.running(world.folder, keep_rounds=2) as address:
        operator, sites = world.operator(address), await world.planned(address)
        first = sites[0].trust
        roster = [entry for entry in first.manifest.roster if entry.name != "dora"]
        second, trust = world.manifest(version=2, first_round=2, previous_digest=first.digest, roster=roster)
        await operator.start(second, world.weights)
        for number in (1, 2):
            if number == 2:
                sites = [world.Site(member, address, trust) for member in world.members[:3]]
                for site in sites:
                    await sites[0].put_relay(sites[0].key_item(site.name))
                await world.each(site.join(2) for site in sites)
                await sites[0].until(lambda s: s.round == 2 and s.plan_digest)
            await world.each(site.contribute(number, updates[i][1]) for i, site in enumerate(sites))
            await sites[0].until(lambda s, number=number: s.round == number and s.close_digest)
            await world.each(site.report(number, bytes([number]) * 32) for site in sites)
        await sites[0].until(lambda s: s.state != pb.STUDY_STATE_RUNNING)
    capsys.readouterr()
    assert main(["audit", "verify", "--dir", str(world.folder), "--json"]) == 0
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    assert (study["manifest_versions"], study["sums_added_up"], study["joins"]) == (2, [1, 2], 7)
    proofs, anchor = {}, world.consortium.anchor
    for number, versions in ((1, 1), (2, 2)):
        out = tmp_path / f"{number}.pem"
        assert prove({"folder": world.folder}, out, "--chunk", "0", number=number) == 0
        proofs[number] = read_proof(out.read_bytes())
        assert len(proofs[number].manifests) == versions
        assert check_proof(proofs[number], anchor).head.hex() == study["transcript"]
    # The newer round under the older manifest, and the other way round.
    older = InclusionProof.FromString(proofs[2].SerializeToString())
    older.manifests.pop()
    newer = InclusionProof.FromString(proofs[1].SerializeToString())
    newer.manifests.append(proofs[2].manifests[1])
    for proof in (older, newer):
        with pytest.raises(VerificationError):
            check_proof(proof, anchor)
