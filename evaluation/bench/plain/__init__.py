"""No encryption at all, to measure what encryption costs in a round.

It is in no registry: a real agent, coordinator or ``sign-study`` refuses a manifest that names it. Only
``cipherward.evaluation.bench.plain.entry``, which the round benchmark starts, knows it.
"""
