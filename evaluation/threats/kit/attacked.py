"""Four hospitals' real agents and one real coordinator with several studies at once, each under another attack.

What an agent makes of an attack is read from what it keeps: incidents, models, and with the change ``keeps-vectors``
what it sent and what it opened.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from cipherward.cli.operator_client import dial
from cipherward.crypto.manifest import manifest_digest
from cipherward.crypto.records import StudyTrust
from cipherward.crypto.study_file import StudyFile
from cipherward.database import reading
from cipherward.durable import read_file, write_file
from cipherward.errors import EnvironmentProblem, UnavailableError
from cipherward.evaluation.demo.consortium import DemoSite
from cipherward.evaluation.demo.processes import Processes
from cipherward.evaluation.demo.run import hospital_parts
from cipherward.evaluation.demo.studies import TASK, demo_study, study_file
from cipherward.evaluation.threats.kit.service import CHANGED, Consortium
from cipherward.proto.v1.coordinator_pb2 import StudyStatus
from cipherward.site_agent.state.folder import MIGRATIONS, SiteFolder
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import Trainer

PARAMETERS = 23
SIGMA, CEILING = 4.0, 60.0
"""Noise of a round, and what the hospitals allow over all of the studies together."""
DEADLINE = 600
SUITES = ("quorum", "shared-key")


class Attacked:
    """Leaving the context ends everything. ``coordinator`` and ``sites``: changes (``changed``) to these processes."""

    def __init__(self, folder: Path, coordinator: Sequence[str] = (), sites: Sequence[str] = ()) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.folder, self._changes = folder, {"coordinator": coordinator}
        self.sources = hospital_parts(4)
        self.names = tuple(self.sources)
        self.consortium = Consortium(folder)
        delta = demo_study("fedavg", 1, 3.0).training.delta
        for name, source in self.sources.items():
            self.consortium.add_site(DemoSite(name, source, CEILING, delta), TASK, "quorum")
            self._allow_both(self.consortium.site_folder(name) / "policy.toml")
        self._changes |= {f"site-{name}": sites for name in self.names}
        self._socket = folder / "trainer" / "socket"
        self._trainer = Trainer(self._socket, log=folder / "trainer.log")
        self.processes = Processes(folder / "logs", CHANGED)
        self.address = ""
        self._stack = ExitStack()

    @staticmethod
    def _allow_both(policy: Path) -> None:
        allowed = read_file(policy).decode().replace('["quorum"]', json.dumps(SUITES))
        allowed = allowed.replace("max_lost_reservations = 5", "max_lost_reservations = 50")
        write_file(policy, allowed.encode(), mode=0o600)

    def __enter__(self) -> Self:
        self._stack.callback(self._trainer.close)
        self._stack.enter_context(self.processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """All processes; there is no study yet."""
        self._run("coordinator", "--listen", "127.0.0.1:0")
        self._trainer.start()
        self.address = self.processes.address_of(self.consortium.coordinator, 120)
        for name in self.names:
            self.start_site(name)

    def start_site(self, name: str) -> None:
        """An agent, also again after ``processes.kill``."""
        self._run(f"site-{name}", "--coordinator", self.address, "--trainer-socket", str(self._socket))

    def _run(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        folder = self.consortium.coordinator
        if name != "coordinator":
            folder = self.consortium.site_folder(name.removeprefix("site-"))
        what = name.partition("-")[0]
        return self.processes.start(
            name, ",".join(self._changes[name]), what, "run", "--dir", str(folder), *options
        )

    def study(self, name: str, suite: str, *, rounds: int = 1, **cohort: Any) -> StudyTrust:
        """Sign a study and start it; the agents take part by themselves."""
        plan = demo_study("fedavg", rounds, 3.0)
        content = study_file(plan, suite, self.sources, SIGMA).model_dump()
        content["study"]["name"] = name
        content["cohort"] |= {"minimum": 4, **cohort}
        content["deadlines"] = dict.fromkeys(content["deadlines"], DEADLINE)
        weights = np.zeros(PARAMETERS, dtype="<f4")
        made = StudyFile.model_validate(content)
        signed, manifest = self.consortium.sign(made, weights, task_digest(TASK))
        path = self.folder / "weights.f32"
        write_file(path, weights.tobytes())
        with dial(self.consortium.operator, self.address) as client:
            client.start(signed, path)
        return StudyTrust(manifest, manifest_digest(signed))

    def status(self, study: str) -> StudyStatus:
        """As the operator sees it."""
        with dial(self.consortium.operator, self.address) as client:
            return client.status(study)

    def wait(self, until: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
        """Until it is so; UnavailableError if a process fails or the time is up."""
        self.processes.wait_until(until, what, seconds)

    # What an agent keeps

    def query(self, site: str, statement: str, **values: Any) -> list[Mapping[str, Any]]:
        """Rows of a site's own database, read beside the agent; none before it exists."""
        folder = SiteFolder(self.consortium.site_folder(site))
        if not folder.database.exists():
            return []
        try:
            with reading(folder.database_url, MIGRATIONS, "the site's database cannot be read") as connection:
                return [dict(row) for row in connection.execute(text(statement), values).mappings()]
        except EnvironmentProblem:
            return []  # it has no schema yet; who waits for what never comes is told so

    def incidents(self, site: str, study: str) -> list[str]:
        """What it refused, and why."""
        rows = self.query(site, "select message from incidents where study = :study order by id", study=study)
        return [row["message"] for row in rows]

    def applied(self, site: str, study: str) -> int:
        """The last round whose sum this site believed and applied; 0: none."""
        rows = self.query(site, "select model_round from studies where study = :study", study=study)
        return int(rows[0]["model_round"] or 0) if rows else 0

    def decided(self, study: str) -> bool:
        """Whether every agent applied the sum or refused it."""
        return all(
            self.applied(name, study) or any("refused" in said for said in self.incidents(name, study))
            for name in self.names
        )

    def sent(self, site: str, study: str) -> NDArray[np.float64]:
        """What that site encrypted in the study's newest round; UnavailableError if it sent nothing."""
        path = self._kept("sent", site, study)
        if not path.exists():
            raise UnavailableError(f"{site} sent no update in {study}")
        return np.asarray(np.load(path), dtype=np.float64)

    def opened(self, site: str, study: str) -> NDArray[np.float64] | None:
        """What that site opened in the study's newest round, whether it believed it or not."""
        path = self._kept("opened", site, study)
        return np.asarray(np.load(path), dtype=np.float64) if path.exists() else None

    def _kept(self, what: str, site: str, study: str) -> Path:
        return self.consortium.site_folder(site) / f"{what}-{study}.npy"
