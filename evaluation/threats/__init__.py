"""``cipherward threats``: every attack of the threat model, mounted for real, without and with the defence.

A **row** is one module ``rows/tNN_name.py`` with one object ``ROW``, a :class:`~cipherward.evaluation.threats.row.Row`:
what is attacked, by whom, who holds what, the metric, the rule by which it passes, the source of the attack, seeds,
about how long it takes, and ``run(context) -> Result``. Nothing else registers it: the registry reads the folder.

What ``run`` does:

1. It mounts the attack **with the defence off** (the positive control) and says in ``Result.control_worked`` whether
   the attack succeeded. A row whose control fails is an error, whatever else it found: it cannot tell.
2. It mounts the same attack **as shipped** and says in ``Result.held`` whether the defence held.
3. Both in figures: ``Result.control`` and ``Result.defended`` map names to numbers, booleans, short strings or, for
   what is statistical, an ``Interval`` (``statistics.proportion``, ``statistics.advantage``). A statistical row's
   ``held`` is decided by the interval's ends, so that it can fail.
4. ``Result.plain`` says in one sentence of plain language what was shown; numbers in it come from this run.
5. ``Result.pictures``: plots (``plots.plot``) and images (``plots.images``, side by side), inline in the report.

A row of many small attacks (a malformed upload each, say) makes a ``Case`` of each and ``Result.of_cases``.

``context`` has ``folder`` (empty, the row's own, removed unless ``--keep``), ``fast`` (the smaller version, which keeps
every control), ``seed`` (the row's first; data and statistics follow from it, keys and noise never do) and ``note``
(a line of progress). Rows run in processes of their own, started afresh (never forked), several at a time; a row may
start processes itself, with ``evaluation.demo.processes.Processes``, which end with it. Standard output of a row goes
to ``OUT/logs/ID.log``. Within a row's process ``threads()`` of torch and BLAS are limited to its share of the machine.
A row that raises, hangs (ten times its estimate) or dies is an error.

**Defences are taken out here only**: ``bypass.replaced`` for what runs in the row's own process, and programs of
``kit/`` that patch and then run ``cipherward`` for real processes. The product has no switch for it.
"""
