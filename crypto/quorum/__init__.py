"""The quorum suite: CKKS with one-time keys that are shared among the sites and opened by t of n."""
