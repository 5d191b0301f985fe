"""DP-SGD in processes of its own. Importing this package does not load torch; only the trainer does."""
