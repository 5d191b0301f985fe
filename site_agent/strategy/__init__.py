"""The server step, which every site computes for itself, to the same bits."""
