"""What several rows' attacks are made of."""
