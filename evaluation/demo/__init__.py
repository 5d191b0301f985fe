"""``cipherward demo``: a whole consortium on one machine, in real processes, on real data."""
