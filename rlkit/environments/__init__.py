"""Environments that a model acts in: their processes, and the words between its turns."""
