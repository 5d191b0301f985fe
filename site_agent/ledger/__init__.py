"""Privacy spent at this site: what each mechanism costs, and the append-only record of what was spent."""
