"""Puts a run together from its config: the only place that names concrete parts."""
