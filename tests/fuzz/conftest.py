"""Fuzzing: ``kit/`` holds the targets and how their inputs are made, ``run.py`` runs millions of them, the tests here
some in CI. What was found once stays in ``regressions/``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kit"))
