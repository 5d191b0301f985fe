"""The coordinator's database: all that another coordinator process needs to go on where this one stopped."""
