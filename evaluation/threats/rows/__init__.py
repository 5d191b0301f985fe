"""One module a row, found by its name: ``tNN_what.py``."""
