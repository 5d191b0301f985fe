"""One hospital's daemon: trains, accounts for privacy, encrypts, verifies."""
