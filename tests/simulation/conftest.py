"""Random histories of studies.

``kit/`` is the simulated world of the fast level: ``sim_world`` (one clock, one network, a coordinator, five sites,
two studies), ``sim_coordinator`` (the real state machine, over a store that survives), ``sim_site`` (what a site
agent does) on ``sim_journal``, ``sim_witness`` (the invariants) and ``sim_operations`` (what can happen).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kit"))
