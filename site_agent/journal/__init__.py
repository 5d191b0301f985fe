"""The journal: what a site has promised in a round, on disk before it is said, so that a restart repeats
the same bytes and never says two things."""
