"""Train the installed example task for one private round, and evaluate it, in the agent's own trainer."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cipherward.errors import CipherwardError
from cipherward.site_agent.tasks.base import Split
from cipherward.site_agent.tasks.registry import task_digest
from cipherward.site_agent.training.client import TaskRef, Trainer
from cipherward.site_agent.training.constants import DpSgd

SOURCE = "part:1of4"


def main() -> None:
    """One round at one simulated hospital."""
    task = TaskRef("breast-cancer", task_digest("breast-cancer"))
    constants = DpSgd(
        sampling_rate=0.5,
        steps=40,
        divisor=50.0,
        learning_rate=2.0,
        loss_bound=2.0,
        metrics_scale=100.0,
        clip_norm=1.0,
        noise_multiplier=4.0,
        metrics_noise_multiplier=10.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder) / "trainer" / "socket")
        try:
            trainer.start()
            description = trainer.describe(task, SOURCE)
            weights = trainer.initial_weights(task, seed=1)
            before = trainer.evaluate(task, SOURCE, Split.TEST, weights)
            outcome = trainer.train(task, SOURCE, constants, weights, timeout=600)
            after = trainer.evaluate(task, SOURCE, Split.TEST, weights + outcome.update)
        finally:
            trainer.close()
    sys.stdout.write(
        f"{len(description.patients)} training patients, {description.parameters} parameters, "
        f"trained in {outcome.seconds:.1f} s\n"
        f"AUC on {after.patients} test patients: {before.auc:.3f} before, {after.auc:.3f} after\n"
    )


if __name__ == "__main__":
    try:
        main()
    except CipherwardError as error:
        sys.exit(str(error))
