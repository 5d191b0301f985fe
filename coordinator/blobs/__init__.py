"""Bytes too large for the database: a local folder by default, any object store by URL."""
