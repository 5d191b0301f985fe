"""Learning tasks that hospitals install: the contract, how they are found and pinned, and the built-in
one."""
