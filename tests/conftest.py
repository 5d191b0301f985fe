"""For all tests."""

import os
import signal

from hypothesis import settings

# Machines differ in speed, so nothing is timed. CI tries the same examples each time, so that a red run means
# a change and not a roll of the dice; elsewhere every run tries new ones.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell that runs the tests in the background makes them ignore Ctrl-C, and so would all processes that they start
# and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
