"""What a run leaves on disk: the only reader and writer of its folder, and a run's statistics. Needs no torch."""
