"""The service between the sites: trusted to be up, not trusted with data."""
