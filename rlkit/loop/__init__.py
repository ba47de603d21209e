"""The loop of a run: a rollout in, updates out, and what a checkpoint holds."""
