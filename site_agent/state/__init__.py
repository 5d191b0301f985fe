"""What a site keeps on disk: one database for studies, rounds, journal and ledger, and model files beside
it."""
