"""For all tests."""

import os

from hypothesis import settings

# Machines differ in speed, so nothing is timed. CI tries the same examples each time, so that a red run means
# a change and not a roll of the dice; elsewhere every run tries new ones.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
