"""What all encryption suites have in common: their interface, their registry, and the layout of an update."""
