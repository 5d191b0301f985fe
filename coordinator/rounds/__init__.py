"""The life of a study as a pure state machine: (rules, state, event, now) -> (state, effects).

No input or output, no clock of its own, no randomness. ``state`` says where a study stands, ``events`` what
can happen to it, ``effects`` what must then be done in the world, ``machine`` holds the transitions,
``codec`` writes states as text.
"""
