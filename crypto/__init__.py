"""Suites, sealing, identity, transcript, randomness. Pure computation: no sockets, no database."""
