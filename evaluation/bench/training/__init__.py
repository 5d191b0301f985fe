"""``cipherward bench training``: what a DP-SGD step costs beside the same step without privacy."""
