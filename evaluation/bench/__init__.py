"""Benchmarks. Each prints what it measured and, with ``--json``, writes a list of records."""
