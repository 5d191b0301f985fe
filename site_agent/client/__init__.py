"""Talking to the coordinator: the channel, its errors, and one method for each RPC that a site uses."""
