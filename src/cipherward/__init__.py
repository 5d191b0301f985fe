"""Secure aggregation for hospitals that train one model together."""

__version__ = "0.1.0"
