"""A site's part of a round in the quorum suite: one-time keys, opened by t of n."""
