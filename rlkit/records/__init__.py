"""What a run leaves on disk: the only reader and writer of its folder. Needs no torch."""
